"""A small orchestratord: an HTTP API over an `AdapterHost`, whose streams it forwards.

    pip install worker-adapters starlette uvicorn
    python orchestratord.py http://127.0.0.1:8080 http://127.0.0.1:8081

It shows how the pieces fit together; who may call it, and what is queued before a pool, an
orchestrator has to say itself. docs/embedding.md goes through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from worker_adapters import (
    LlamaCppAdapter,
    Metrics,
    SubmitContext,
    TaskRequest,
    TokenStream,
    WorkerError,
)
from worker_adapters.host import AdapterHost
from worker_adapters.observe.gauges import GaugeRefresher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request

    from worker_adapters import WorkerAdapter

MAX_BODY_BYTES: Final = 8 << 20

UNREAD_SECONDS: Final = 30.0
"""How long after its deadline a stream that nobody has fetched is kept."""

STATUS: Final[Mapping[str, int]] = {
    "ADMISSION_REJECT": 429,
    "QUEUE_FULL_DROP_LRU": 429,
    "INVALID_PARAMS": 400,
    "POOL_UNREADY": 503,
    "POOL_UNAVAILABLE": 503,
    "REPLICA_EXHAUSTED": 503,
    "DECODE_TIMEOUT": 504,
    "DEADLINE_UNMET": 504,
    "WORKER_RESET": 502,
    "INTERNAL": 500,
    "MODEL_DEPRECATED": 410,
    "UNTRUSTED_ARTIFACT": 403,
}
"""How HTTP says what an ErrorKind says."""


@dataclass(slots=True)
class Task:
    """A task whose stream nobody has fetched yet, or somebody is reading."""

    pool_id: str
    stream: TokenStream
    expiry: asyncio.TimerHandle
    is_read: bool = False


class Orchestratord:
    """The API. Owns neither the host nor the metrics."""

    def __init__(self, host: AdapterHost, metrics: Metrics, pool_id: str) -> None:
        self.host = host
        self.metrics = metrics
        self.pool_id = pool_id
        """Where tasks go that name no pool."""
        self._tasks: dict[UUID, Task] = {}

    def routes(self) -> list[Route]:
        """Return what is served."""
        return [
            Route("/v1/tasks", self.submit, methods=["POST"]),
            Route("/v1/tasks/{task_id:uuid}/stream", self.stream),
            Route("/v1/tasks/{task_id:uuid}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/pools/{pool_id}/health", self.health),
            Route("/v1/capabilities", self.capabilities),
            Route("/metrics", self.scrape),
        ]

    def adapters(self) -> list[WorkerAdapter]:
        """Return every adapter that is bound now: their engines are asked for their load."""
        return [replica.adapter for replica in self.host.registry.replicas()]

    async def submit(self, request: Request) -> Response:
        """Take a `TaskRequest`: 202 once an engine has taken it up, and its stream can be fetched.

        ``?pool_id=`` names a pool, ``X-Correlation-Id`` and ``traceparent`` go on to the engine.
        """
        body = await _body(request)
        if body is None:
            return _refusal(413, "INVALID_PARAMS", f"more than {MAX_BODY_BYTES} bytes")
        pool_id = request.query_params.get("pool_id", self.pool_id)
        try:
            task = TaskRequest.model_validate_json(body)
            context = SubmitContext(
                correlation_id=request.headers.get("x-correlation-id") or str(uuid4()),
                traceparent=request.headers.get("traceparent"),
                tracestate=request.headers.get("tracestate"),
            )
        except ValidationError as error:
            # Its text names fields and rules, and repeats no value.
            return _refusal(400, "INVALID_PARAMS", str(error))
        try:
            stream = await self.host.submit(pool_id, task, context=context)
        except WorkerError as error:
            return _failure(error)
        seconds = task.deadline_ms / 1000 + UNREAD_SECONDS
        expiry = asyncio.get_running_loop().call_later(seconds, self._tasks.pop, task.task_id, None)
        self._tasks[task.task_id] = Task(pool_id, stream, expiry)
        return JSONResponse(
            {"task_id": str(task.task_id), "pool_id": pool_id},
            status_code=202,
            headers={"X-Correlation-Id": context.correlation_id or ""},
        )

    async def stream(self, request: Request) -> Response:
        """Forward the task's events, once. Whoever hangs up cancels the task."""
        task_id: UUID = request.path_params["task_id"]
        task = self._tasks.get(task_id)
        if task is None:
            return _refusal(404, "INVALID_PARAMS", "no such task")
        if task.is_read:
            return _refusal(409, "INVALID_PARAMS", "somebody reads this stream already")
        task.is_read = True
        task.expiry.cancel()
        return StreamingResponse(
            self._events(task_id, task),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _events(self, task_id: UUID, task: Task) -> AsyncIterator[bytes]:
        try:
            async with task.stream:
                async for events in task.stream.sse():
                    yield events
        finally:
            self._tasks.pop(task_id, None)

    async def cancel(self, request: Request) -> Response:
        """Cancel a task: no token follows the answer. An unknown one is no error."""
        task_id: UUID = request.path_params["task_id"]
        task = self._tasks.get(task_id)
        pool_id = self.pool_id if task is None else task.pool_id
        receipt = await self.host.cancel(pool_id, task_id)
        return JSONResponse(receipt.model_dump(mode="json"))

    async def health(self, request: Request) -> Response:
        """Tell how a pool is: 200 where it takes tasks, 503 where it does not."""
        try:
            health = await self.host.health(request.path_params["pool_id"])
        except WorkerError as error:
            return _failure(error, 404)
        status = 200 if health.ready else 503
        return JSONResponse(health.model_dump(mode="json"), status_code=status)

    async def capabilities(self, _request: Request) -> Response:
        """Tell what every replica can do."""
        document = await self.host.capabilities()
        return JSONResponse(document.model_dump(mode="json", exclude_none=True))

    async def scrape(self, _request: Request) -> Response:
        """Tell Prometheus."""
        return Response(self.metrics.render(), media_type=self.metrics.content_type())


def application(orchestratord: Orchestratord) -> Starlette:
    """Return the application; the host lives as long as it does."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with orchestratord.host, GaugeRefresher(orchestratord.adapters):
            yield

    return Starlette(routes=orchestratord.routes(), lifespan=lifespan)


async def _body(request: Request) -> bytes | None:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _failure(error: WorkerError, status: int | None = None) -> Response:
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "engine": error.engine,
        "retriable": error.retriable,
        "retry_after_ms": error.retry_after_ms,
    }
    headers = {}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))
    return JSONResponse(body, status_code=status or STATUS[error.code], headers=headers)


def _refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "message": message, "retriable": False}, status_code=status)


def main(urls: list[str]) -> None:
    """Serve a pool of llama.cpp servers."""
    import uvicorn

    metrics = Metrics()
    host = AdapterHost(metrics=metrics)
    for number, url in enumerate(urls):
        host.bind(LlamaCppAdapter(url, pool_id="default", replica_id=str(number), metrics=metrics))
    uvicorn.run(application(Orchestratord(host, metrics, "default")), port=9000)


if __name__ == "__main__":
    main(sys.argv[1:])
