"""Servers that have OpenAI's routes and little else, and vLLM, which has more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from worker_adapters.testing.engines._base import CONTEXT, Refusal, body_of, compact, example_of
from worker_adapters.testing.engines._openai_routes import OpenAiRoutes
from worker_adapters.testing.wire import Connection, Received, response

__all__ = ["OpenAiEngine", "VllmEngine"]

UVICORN: Final = (("server", "uvicorn"),)
PHRASES: Final[Mapping[int, str]] = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    422: "Unprocessable Entity",
    424: "Failed Dependency",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class OpenAiEngine(OpenAiRoutes):
    """A server of OpenAI's routes with a health route, and nothing that tells its version."""

    dialect = "openai"
    owned_by: ClassVar[str] = "someone"
    stream_headers = (
        *UVICORN,
        ("content-type", "text/event-stream; charset=utf-8"),
        ("transfer-encoding", "chunked"),
    )
    checks_model = True

    async def answer(self, connection: Connection, request: Received) -> bool:
        """Answer one request. Raises Refusal."""
        match request.route:
            case "GET /health":
                loading = self.refusal(Refusal(503, "", "loading"))
                return await self.health(connection, self.json(None), loading)
            case "GET /v1/models":
                await connection.send(self.json(self._listing()))
                return True
        answered = await self.openai(connection, request)
        if answered is None:
            answered = await self.other(connection, request)
        if answered is None:
            raise Refusal(404, "Not Found", "route")
        return answered

    async def other(self, connection: Connection, request: Received) -> bool | None:
        """Answer what is particular to the engine; None where it is nothing. Raises Refusal."""
        del connection, request
        return None

    def _listing(self) -> dict[str, Any]:
        row = {
            "id": self.model,
            "object": "model",
            "created": 1_795_384_160,
            "owned_by": self.owned_by,
            "root": f"models/{self.model}",
            "parent": None,
            "max_model_len": CONTEXT,
        }
        return {"object": "list", "data": [row]}

    def too_long(self, tokens: int) -> str:
        """Return what it says to a prompt of so many tokens."""
        return (
            f"This model's maximum context length is {CONTEXT} tokens. However, your prompt "
            f"contains at least {tokens} input tokens. Please reduce the length of the prompt."
        )

    def refusal(self, refusal: Refusal) -> bytes:
        """Return the response that refuses a request."""
        status = f"{refusal.status} {PHRASES.get(refusal.status, 'Error')}"
        if refusal.kind == "route":
            return self.json({"detail": refusal.message}, status)
        return self.json(self.error(refusal), status)

    def json(self, answer: Any, status: str = "200 OK") -> bytes:
        """Return a whole answer; None is an empty one."""
        body = "" if answer is None else compact(answer)
        return response(body, status, headers=UVICORN)


class VllmEngine(OpenAiEngine):
    """As vLLM 0.32 behind its Python front end, started with ``--enable-scale-out``."""

    dialect = "vllm"
    owned_by = "vllm"
    ends_with_token = True
    version: ClassVar[str] = "0.32.0"

    def is_open(self, path: str) -> bool:
        """Whether a path needs no key."""
        return not path.startswith(("/v1", "/inference"))

    async def other(self, connection: Connection, request: Received) -> bool | None:
        """Answer what vLLM has beside OpenAI's routes. Raises Refusal."""
        match request.route:
            case "GET /version":
                await connection.send(self.json({"version": self.version}))
            case "GET /server_info":
                scheduler = {"scheduler_config": {"max_num_seqs": self.slots}}
                await connection.send(self.json({"vllm_config": scheduler}))
            case "GET /metrics":
                await connection.send(response("".join(self._metrics()), content_type="text/plain"))
            case "POST /inference/v1/abort_requests":
                wanted = body_of(request).get("request_ids") or []
                if not wanted:
                    # The server takes none for all.
                    wanted = [row.id for row in self.generations]
                for name in wanted:
                    self.abort(name)
                await connection.send(self.json(None))
            case _:
                return None
        return True

    def _metrics(self) -> Iterable[str]:
        labels = '{engine="0",model_name="tiny"}'
        values = {"num_requests_running": self.busy, "num_requests_waiting": 0}
        for name, value in {**values, "kv_cache_usage_perc": 0.0}.items():
            yield f"# TYPE vllm:{name} gauge\nvllm:{name}{labels} {float(value)}\n"

    def constrained(self, asked: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what a constraint makes it say."""
        wanted = asked.get("structured_outputs") or {}
        if "choice" in wanted:
            return (wanted["choice"][0],)
        if "json" in wanted:
            return (compact(example_of(wanted["json"])),)
        return super().constrained(asked)
