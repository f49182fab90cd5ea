"""An engine that another package brings: an adapter class, a map of fields, no Rust."""

from __future__ import annotations

import json
import sys
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.engines.played import engine
from tests.unit.tasks import fields
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, answer, chunk
from worker_adapters import AdapterError, Extensions, TaskExtensions, WorkerError
from worker_adapters.contract import TaskRequest, Timeouts, WorkerIdentity, WorkerProps
from worker_adapters.engines import ENGINES, ENTRY_POINTS, adapter_class, engine_names
from worker_adapters.engines.base import (
    Answer,
    Call,
    Dispatch,
    ErrorRules,
    HttpAdapter,
    Request,
    Unsupported,
)
from worker_adapters.extensions import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tests.unit.engines.played import Answering

pytestmark = both_transports

# The example of docs/third-party-engines.md; a test below holds the two together.


class AcmeAdapter(HttpAdapter):
    """Acme's server: ``POST /v2/generate`` streams objects, the last has ``done``."""

    engine = "acme"
    dialect = "field_map"
    health_path = "/v2/ready"
    translates = frozenset(("stop", "sampling", "token_ids"))
    cancel_kind = "close+abort"
    rules = ErrorRules(
        [
            {
                "code": "busy",
                "kind": "PoolUnavailable",
                "error_code": "REPLICA_EXHAUSTED",
                "detail": "queue_full",
                "processed": "no",
            },
        ]
    )

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        return await self._get_json(
            "/v2/about",
            call,
            lambda about: WorkerIdentity(
                engine_version=about["build"], model=about["model"], ctx_max=about["window"]
            ),
        )

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for the server's seats. See `WorkerAdapter.props`."""
        return await self._get_json(
            "/v2/seats",
            self._call(timeouts),
            lambda seats: WorkerProps(
                slots_total=seats["all"], slots_free=seats["free"], source="seats"
            ),
        )

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        sampling = dispatch.sampling()
        heat = sampling.pop("temperature", 1.0)
        for name in sampling:
            raise Unsupported(f"sampling.{name}", "the server takes a temperature only")
        return "/v2/generate", {
            "ref": dispatch.request_id,
            "prompt": dispatch.task.prompt,
            "limit": dispatch.task.max_tokens,
            "heat": heat,
            "until": dispatch.stop(),
            "seed": dispatch.seed,
        }

    def _dialect_options(self, dispatch: Dispatch) -> Mapping[str, str]:
        options = {
            "text_pointer": "/out/text",
            "text": "cumulative",
            "finish_reason_pointer": "/why",
            "error_pointer": "/fault",
            "tokens_in_pointer": "/used/prompt",
            "tokens_out_pointer": "/used/answer",
            "end": "pointer:/done",
        }
        if dispatch.extensions.token_ids:
            options["token_ids_pointer"] = "/out/ids"
        return options

    def _abort_request(self, dispatch: Dispatch) -> Request | None:
        return Request("POST", f"/v2/stop/{dispatch.request_id}", (), b"")

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        raise Unsupported(f"workload {dispatch.task.workload}")

    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        raise TypeError(f"{task.workload}: {type(answer)}")


# End of the example.

ABOUT = answer('{"build":"2.1","model":"acme-7b","window":512}')
FRAMES: list[dict[str, Any]] = [
    {"out": {"text": "hel", "ids": [1]}, "used": {"prompt": 3, "answer": 1}, "why": None},
    {"out": {"text": "hello", "ids": [2]}, "used": {"prompt": 3, "answer": 2}, "done": False},
    {"out": {"text": "hello"}, "used": {"prompt": 3, "answer": 2}, "why": "stop", "done": True},
]


def stream(frames: Iterable[Mapping[str, Any]]) -> bytes:
    said = b"".join(chunk(f"data: {json.dumps(frame)}\n\n".encode()) for frame in frames)
    return STREAM_HEAD + said + LAST_CHUNK


def acme(extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    if extensions is not None:
        changes["extensions"] = TaskExtensions.model_validate(extensions)
    return Extensions.all("acme").task_request(**fields(engine="acme", **changes))


def routes(generate: Answering) -> dict[str, Answering]:
    return {
        "GET /v2/about": ABOUT,
        "GET /v2/ready": answer(""),
        "GET /v2/seats": answer('{"all":4,"free":3}'),
        "POST /v2/generate": generate,
    }


async def test_it_does_what_every_adapter_does() -> None:
    async with engine(routes(stream(FRAMES))) as server, AcmeAdapter(server.url) as adapter:
        assert (await adapter.health()).ready
        assert await adapter.engine_version() == "2.1"
        wanted = {"stop": ["END"], "token_ids": True, "sampling": {"temperature": 0.5}}
        running = await adapter.submit(acme(wanted, seed=5))
        answered = await running.collect()
        [request] = server.requests("/v2/generate")
        capabilities = await adapter.capabilities()
    assert request.json["heat"] == 0.5
    assert (request.json["until"], request.json["limit"]) == (["END"], 16)
    assert answered.text == "hello"
    assert [event.t for event in answered.events if event.kind == "token"] == ["hel", "lo"]
    assert [event.token_ids for event in answered.events if event.kind == "token"] == [[1], [2]]
    assert (answered.tokens_in, answered.tokens_out) == (3, 2)
    assert (answered.finish_reason, answered.usage_source) == ("stop", "engine")
    assert (answered.seed, answered.engine_version, answered.model) == (5, "2.1", "acme-7b")
    assert answered.events[0].engine == "acme"
    assert (capabilities.ctx_max, capabilities.slots_total) == (512, 4)
    assert capabilities.features["cancel"].value == "close+abort"
    assert capabilities.features["constraint.regex"].value is False


async def test_its_errors_are_its_rules() -> None:
    fault = {"fault": {"code": "busy", "message": "come again"}}
    async with engine(routes(stream([fault]))) as server, AcmeAdapter(server.url) as adapter:
        with pytest.raises(WorkerError) as caught:
            await (await adapter.submit(acme())).collect()
    error = caught.value
    assert (error.engine, error.code, error.detail) == ("acme", "REPLICA_EXHAUSTED", "queue_full")
    assert error.message == "come again"


async def test_what_it_does_not_translate_is_refused() -> None:
    async with engine(routes(stream(FRAMES))) as server, AcmeAdapter(server.url) as adapter:
        for asked, field in (
            (acme({"priority": 1}), "priority"),
            *(
                (acme({"sampling": {"temperature": 0.5, name: 0.5}}), f"sampling.{name}")
                for name in Sampling.model_fields.keys() - {"temperature", "top_k"}
            ),
            (acme({"sampling": {"top_k": 5}}), "sampling.top_k"),
            (acme(workload="embedding"), "workload embedding"),
        ):
            with pytest.raises(AdapterError, match=rf"acme 2\.1 does not support {field}"):
                await adapter.submit(asked)
        assert not server.requests("/v2/generate")


async def test_it_is_cancelled_by_its_own_abort() -> None:
    async def endless(connection: Any, _: Any) -> None:
        said = json.dumps(FRAMES[0])
        await connection.send(STREAM_HEAD + chunk(f"data: {said}\n\n".encode()))
        await connection.until_closed()

    async with engine(routes(endless)) as server, AcmeAdapter(server.url) as adapter:
        asked = acme()
        running = await adapter.submit(asked)
        await anext(running)
        assert (await adapter.cancel(asked.task_id)).sent
        [sent] = server.requests("/v2/generate")
        await server.asked(f"/v2/stop/{sent.json['ref']}")


def test_a_task_names_it_only_where_that_is_allowed() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        TaskRequest(**fields(engine="acme"))


# Entry points: a distribution is a folder on the path with its metadata beside its module.


def bring(folder: Path, name: str, *entries: str, code: str = "") -> None:
    """Install a distribution with these entry points and one module of its name."""
    (folder / f"{name}.py").write_text(dedent(code), encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    listed = "\n".join((f"[{ENTRY_POINTS}]", *entries))
    (info / "entry_points.txt").write_text(listed + "\n", encoding="utf-8")


def test_an_engine_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from worker_adapters.engines.llamacpp import LlamaCppAdapter

        class ForkAdapter(LlamaCppAdapter):
            engine = "fork"
    """
    bring(tmp_path, "wa_fork", "fork = wa_fork:ForkAdapter", "vllm = wa_fork:Other", code=code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wa_fork", raising=False)
    assert engine_names() == (*ENGINES, "fork")
    assert "wa_fork" not in sys.modules  # nothing is imported before it is asked for
    cls = adapter_class("fork")
    assert (cls.__name__, cls.engine) == ("ForkAdapter", "fork")
    # Nobody takes the place of an engine of this library.
    assert adapter_class("vllm").__module__ == "worker_adapters.engines.vllm"
    with pytest.raises(ValueError, match=r"unknown engine 'spoon'; known: llamacpp.*, fork"):
        adapter_class("spoon")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("broken = wa_broken:Missing", "cannot be imported"),
        ("broken = wa_absent:Missing", "cannot be imported"),
        ("broken = wa_broken:Nothing", "is no subclass of WorkerAdapter"),
        ("broken = wa_broken:Renamed", "calls itself 'llamacpp'"),
    ],
)
def test_entry_points_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, said: str
) -> None:
    code = """
        from worker_adapters.engines.llamacpp import LlamaCppAdapter as Renamed

        class Nothing:
            pass
    """
    bring(tmp_path, "wa_broken", entry, code=code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wa_broken", raising=False)
    with pytest.raises(ValueError, match=said):
        adapter_class("broken")
    monkeypatch.delitem(sys.modules, "wa_broken", raising=False)


def test_two_packages_with_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(tmp_path, "wa_one", "twice = wa_one:A")
    bring(tmp_path, "wa_two", "twice = wa_two:A")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="several packages bring an engine 'twice': wa_one:A, wa"):
        adapter_class("twice")


def test_the_documented_example_is_this_one(repository: Path) -> None:
    source = (repository / "tests/unit/engines/test_third_party.py").read_text(encoding="utf-8")
    example = source.partition("class AcmeAdapter")[2].partition("\n\n\n# End of the example")[0]
    page = (repository / "docs/third-party-engines.md").read_text(encoding="utf-8")
    assert f"class AcmeAdapter{example}\n```" in page
