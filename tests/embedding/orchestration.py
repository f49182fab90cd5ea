"""The example orchestratord in a thread of its own, over two real llama.cpp servers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from uuid import uuid4

import httpx
import uvicorn
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from docs.examples.orchestratord import Orchestratord, application
from worker_adapters import LlamaCppAdapter, Metrics
from worker_adapters.host import AdapterHost, ProbePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from concurrent.futures import Future

    from worker_adapters.testing.llamacpp import LlamaCppServer

POOL: Final = "default"
WITHIN: Final = 30.0
"""How long anything may take, in seconds: a guard, with ten-fold slack."""

T = TypeVar("T")


def task(max_tokens: int) -> dict[str, Any]:
    """The JSON of a completion task."""
    return {
        "task_id": str(uuid4()),
        "session_id": str(uuid4()),
        "workload": "completion",
        "model_ref": "tiny.gguf",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": max_tokens,
        "deadline_ms": 60_000,
        "prompt": "Once upon a time",
    }


@dataclass
class Reading:
    """A client's view of one task: what was accepted, and the events it has read."""

    task_id: str
    accepted: httpx.Response
    response: httpx.Response | None = None
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    replica_id: str = ""
    _lines: Iterator[str] | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds of the events that have been read."""
        return [kind for kind, _ in self.events]

    @property
    def tokens(self) -> int:
        """How many tokens the client was given."""
        return sum(data.get("n", 1) for kind, data in self.events if kind == "token")

    @property
    def tokens_out(self) -> int:
        """How many tokens the last event says there were."""
        return int(self.events[-1][1]["tokens_out"])

    def open(self, client: httpx.Client) -> None:
        """Begin to fetch the stream."""
        request = client.build_request("GET", f"/v1/tasks/{self.task_id}/stream")
        self.response = client.send(request, stream=True)
        assert self.response.status_code == 200
        assert self.response.headers["content-type"].startswith("text/event-stream")
        self._lines = self.response.iter_lines()

    def read(self, tokens: int | None = None) -> None:
        """Read that many tokens, or to the end."""
        assert self._lines is not None
        kind = ""
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                self.events.append((kind, json.loads(value)))
            elif tokens is not None and self.kinds.count("token") >= tokens:
                return

    def hang_up(self) -> None:
        """Close the connection."""
        assert self.response is not None
        self.response.close()


class Orchestration:
    """An orchestrator that serves, its host, and a client. A context manager."""

    def __init__(self, servers: Sequence[LlamaCppServer]) -> None:
        self.metrics = Metrics()
        self.host = AdapterHost(metrics=self.metrics, probes=ProbePolicy(interval=0.2))
        self._urls = [server.url for server in servers]
        self.readings: list[Reading] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        port = self._socket.getsockname()[1]
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=WITHIN
        )
        app = application(Orchestratord(self.host, self.metrics, POOL))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        for number, url in enumerate(self._urls):
            self.host.bind(self.adapter(url, str(number)))
        await self._server.serve(sockets=[self._socket])

    def adapter(self, url: str, replica_id: str) -> LlamaCppAdapter:
        """Make an adapter for a replica of the pool."""
        return LlamaCppAdapter(url, pool_id=POOL, replica_id=replica_id, metrics=self.metrics)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            eventually("the pool is ready", lambda: self._server.started and self._is_ready())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for reading in self.readings:
            if reading.response is not None:
                reading.response.close()
        self.client.close()
        self._server.should_exit = True
        self._thread.join(WITHIN)
        assert not self._thread.is_alive()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` in the orchestrator's loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, do: Callable[[], T]) -> T:
        """Call ``do`` in the orchestrator's loop."""

        async def called() -> T:
            return do()

        return self.begin(called()).result(WITHIN)

    def submit(self, max_tokens: int, **headers: str) -> Reading:
        """Submit a task as a client."""
        before = self.in_flight()
        body = task(max_tokens)
        accepted = self.client.post("/v1/tasks", json=body, headers=headers)
        assert accepted.status_code == 202, accepted.text
        reading = Reading(body["task_id"], accepted)
        after = self.in_flight()
        reading.replica_id = next(
            (name for name, count in after.items() if count > before[name]), ""
        )
        self.readings.append(reading)
        return reading

    def served(self, max_tokens: int = 4) -> str:
        """Run a task to its end and return which replica served it."""
        before = self.started()
        reading = self.submit(max_tokens)
        reading.open(self.client)
        reading.read()
        assert reading.kinds[-1] == "end", reading.events[-1]
        after = self.started()
        (name,) = [name for name in after if after[name] > before.get(name, 0)]
        return name

    def started(self) -> dict[str, float]:
        """How many tasks each replica was given, by the metrics."""
        return self.by_replica("tasks_started_total")

    def by_replica(self, name: str) -> dict[str, float]:
        """Return a metric's sum by replica."""
        sums: dict[str, float] = {}
        for labels, value in self.samples(name):
            replica = labels["replica_id"]
            sums[replica] = sums.get(replica, 0.0) + value
        return sums

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return a metric's samples, as a scrape has them."""
        families: Any = text_string_to_metric_families
        return [
            (dict(sample.labels), sample.value)
            for family in families(self.client.get("/metrics").text)
            for sample in family.samples
            if sample.name == name
        ]

    def in_flight(self) -> dict[str, int]:
        """How many tasks each replica has."""
        return {one["replica_id"]: one["in_flight"] for one in self.health()["replicas"]}

    def health(self) -> Any:
        """Ask how the pool is."""
        return self.client.get(f"/v1/pools/{POOL}/health").json()

    def _is_ready(self) -> bool:
        replicas = self.health()["replicas"]
        return len(replicas) == len(self._urls) and all(one["ready"] for one in replicas)


def slots_are_free(url: str) -> bool:
    """Whether an engine works on nothing, as it says itself."""
    slots = httpx.get(f"{url}/slots", trust_env=False, timeout=WITHIN).json()
    return not any(slot["is_processing"] for slot in slots)


def eventually(what: str, condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` is true; another process makes it so."""
    until = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.01)
