"""What the tests on the real engine share: tasks, known text, the engine's own view."""

from __future__ import annotations

import asyncio
import re
import time
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx

from worker_adapters import SamplerProfile, TaskRequest
from worker_adapters.testing.llamacpp.tiny_gguf import CHAINS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ONCE = "Once upon a time"
FREED = 5.0
"""Within how many seconds a slot is free again.

The aim is 0.1 s, usually it is 5 to 30 ms; a busy machine gets the rest. What runs until then would
take 15 s more.
"""
FINITE = " world! this reply ends here."

# Every token of the vocabulary may come, also those that are no valid UTF-8 by themselves.
WANDER = SamplerProfile(
    name="wander", version="wander-1", temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
)


def task(prompt: str | None = ONCE, **fields: Any) -> TaskRequest:
    """A completion task; any field can be set."""
    base: dict[str, Any] = {
        "task_id": uuid4(),
        "session_id": uuid4(),
        "workload": "completion",
        "model_ref": "tiny.gguf",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 40,
        "deadline_ms": 30_000,
        "prompt": prompt,
    }
    return TaskRequest(**(base | fields))


def cycle_text(after: str, tokens: int) -> str:
    """What the model says greedily after a word of its cycle: this many tokens.

    Bytes of a character that the last token does not complete are left out, as the engine does.
    """
    chain: list[bytes] = []
    for item in CHAINS["cycle"][1:]:
        if item.startswith("b:"):
            chain += [bytes([int(pair, 16)]) for pair in item[2:].split()]
        else:
            chain.append(item.replace("▁", " ").encode())
    start = chain.index(after.encode()) + 1
    said = b"".join(islice(cycle(chain), start, start + tokens))
    return said.decode("utf-8", "ignore")


async def eventually(
    probe: Callable[[], Awaitable[bool]], what: str, *, within: float = 10.0, every: float = 0.002
) -> float:
    """Seconds until the probe said yes; fails the test after ``within`` seconds."""
    started = time.monotonic()
    while not await probe():
        if time.monotonic() - started > within:
            raise AssertionError(f"not within {within} s: {what}")
        await asyncio.sleep(every)
    return time.monotonic() - started


class Engine:
    """The engine as it describes itself, asked directly, not through the adapter."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    async def get(self, path: str) -> Any:
        return (await self._client.get(self.url + path)).raise_for_status().json()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return (await self._client.post(self.url + path, json=body)).raise_for_status().json()

    async def busy(self) -> int:
        """How many slots are at work."""
        return sum(slot["is_processing"] for slot in await self.get("/slots"))

    async def tokenize(self, text: str) -> int:
        """How many tokens the engine makes of a prompt, the one at its beginning included."""
        body = {"content": text, "add_special": True}
        return len((await self.post("/tokenize", body))["tokens"])

    async def counters(self) -> dict[str, int]:
        """The engine's counters from /metrics, without their prefix."""
        text = (await self._client.get(self.url + "/metrics")).raise_for_status().text
        found = re.findall(r"^llamacpp:(\w+) ([0-9.e+]+)$", text, re.MULTILINE)
        return {name: int(float(value)) for name, value in found}

    async def idle(self, *, within: float = 10.0) -> float:
        """Seconds until no slot is at work and nothing waits."""

        async def probe() -> bool:
            return await self.busy() == 0

        return await eventually(probe, "every slot is free", within=within)
