"""Tasks done on a host of its own, where a test says what names and routes there are.

`told_apart` runs this module in a process with namespaces of its own and returns what became of
each task; root alone may have such a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.faults.outcomes import ANSWER, adapter, ask
from tests.replay.test_url_vectors import POLICIES, ROWS
from tests.unit.tasks import task
from worker_adapters import Timeouts, WorkerError
from worker_adapters.testing.wire import RawServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.faults.outcomes import Outcome
    from worker_adapters import LlamaCppAdapter
    from worker_adapters.testing.wire import Connection

REPOSITORY: Final = Path(__file__).parents[2]
_A, _AAAA = 1, 28
_NO_SUCH_NAME = 3
DEAD: Final = "fd00:9::5"
"""An address of a network that is there and has nobody in it."""
_SEVERAL: Final = 20
_CANNOT: Final = 77


def told_apart(transport: str) -> dict[str, Any]:
    """Return what `_everything` does, there; skips the test where it cannot be done."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs root, unshare and ip, for a host of its own")
    probe = ["unshare", "--net", "--mount", "--", "ip", "link", "set", "lo", "up"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no namespaces can be made here")
    done = subprocess.run(
        [*probe[:4], sys.executable, "-W", "error", "-m", "tests.faults.apart", transport],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    if done.returncode == _CANNOT:
        pytest.skip(f"no host of its own can be made here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


class NameServer:
    """Answers for the names it knows; one answer after the other, the last one for ever."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.names: dict[str, list[Sequence[str]]] = {}
        self.silent: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            name, kind, end = _question(query)
            if name not in self.silent:
                self._socket.sendto(self._answer(query, name, kind, end), client)

    def _answer(self, query: bytes, name: str, kind: int, end: int) -> bytes:
        family = {_A: socket.AF_INET, _AAAA: socket.AF_INET6}.get(kind)
        known = self.names.get(name)
        if known is None or family is None:
            return (
                query[:2]
                + bytes([0x81, 0x80 | _NO_SUCH_NAME])
                + query[4:6]
                + bytes(6)
                + (query[12:end])
            )
        if kind == _A:
            self.asked[name] += 1
        given = known[min(max(0, self.asked[name] - 1), len(known) - 1)]
        found = [
            packed
            for address in given
            if (":" in address) == (family == socket.AF_INET6)
            for packed in [socket.inet_pton(family, address)]
        ]
        records = b"".join(
            b"\xc0\x0c" + kind.to_bytes(2) + b"\0\x01" + bytes(4) + len(packed).to_bytes(2) + packed
            for packed in found
        )
        head = query[:2] + b"\x81\x80" + query[4:6] + len(found).to_bytes(2) + bytes(4)
        return head + query[12:end] + records


def _question(query: bytes) -> tuple[str, int, int]:
    """Return the name that is asked for, what of it, and where the question ends."""
    labels = []
    at = 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode("ascii").lower())
        at += 1 + size
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3]), at + 5


def _prepare() -> NameServer:
    """Make this the host that the tests want."""
    for command in (
        "ip link set lo up",
        "ip link add near type veth peer name far",
        "ip addr add fd00:9::1/64 dev near nodad",
        "ip link set near up",
        "ip link set far up",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
        file.write("nameserver 127.0.0.1\noptions timeout:3 attempts:1\n")
    try:
        subprocess.run(
            ["mount", "--bind", file.name, "/etc/resolv.conf"], check=True, capture_output=True
        )
    finally:
        Path(file.name).unlink()
    return NameServer()


async def _outcome(url: str, transport: str, **options: Any) -> dict[str, Any]:
    """Return what became of a task at ``url``."""
    async with _adapter(url, transport, **options) as made:
        return _told(await ask(made, task()))


def _adapter(url: str, transport: str, *, connect: float = 30.0, **options: Any) -> LlamaCppAdapter:
    return adapter(url, timeouts=Timeouts(connect=connect), transport=transport, **options)


def _told(outcome: Outcome) -> dict[str, Any]:
    error = {} if outcome.error is None else outcome.error.fields()
    return {
        "tokens": len(outcome.tokens),
        "raised": outcome.is_raised,
        "seconds": outcome.seconds,
        **{key: error.get(key) for key in ("kind", "detail", "phase", "processed", "retriable")},
    }


async def _in_vain(url: str, transport: str) -> tuple[list[dict[str, Any]], int]:
    """Return what becomes of many tasks whose name is not found, and how many threads look."""
    before = _threads()
    async with _adapter(url, transport, connect=0.5) as made:
        asked = [asyncio.create_task(ask(made, task())) for _ in range(_SEVERAL)]
        await asyncio.sleep(0.3)
        most = _threads() - before
        return [_told(await one) for one in asked], most


async def _everything(names: NameServer, transport: str) -> dict[str, Any]:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(ANSWER)

    told: dict[str, Any] = {"denied": await _denied(names, transport)}
    async with RawServer(script) as server:
        port = server.url.rpartition(":")[2]

        def at(name: str) -> str:
            return f"http://{name}:{port}"

        names.names = {
            "empty.test": [[]],
            "rebind.test": [["127.0.0.1"], ["127.0.0.2"]],
            "two.test": [[DEAD, "127.0.0.1"]],
        }
        names.silent = {"silent.test"}
        told["nobody"] = await _outcome(at("nobody.test"), transport)
        told["empty"] = await _outcome(at("empty.test"), transport)
        told["rebind"] = await _outcome(at("rebind.test"), transport)
        told["rebind"]["asked"] = names.asked["rebind.test"]
        told["two"] = await _outcome(at("two.test"), transport)
        told["unreachable"] = await _outcome("http://10.1.1.1:80", transport)
        with _without_ports(server.url):
            told["ports"] = await _outcome(server.url, transport)
        told["silent"], told["threads"] = await _in_vain(at("silent.test"), transport)
    return told


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@contextlib.contextmanager
def _without_ports(url: str) -> Iterator[None]:
    """Have but two ports for connections, both of them taken."""
    bounds = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = bounds.read_text("ascii")
    port = int(url.rpartition(":")[2])
    first = 60_000 if port < 60_000 else 50_000
    bounds.write_text(f"{first} {first + 1}", "ascii")
    try:
        with contextlib.ExitStack() as taken:
            for _ in range(2):
                one = socket.create_connection(("127.0.0.1", port))
                taken.enter_context(contextlib.closing(one))
            yield
    finally:
        bounds.write_text(before, "ascii")


async def _denied(names: NameServer, transport: str) -> dict[str, Any]:
    """Ask for every URL that a policy forbids; how each was refused, and how many were dialled."""
    refused = {}
    for row in ROWS:
        if row["allowed"] or "redirect_to" in row:
            continue
        names.names = {name: [given] for name, given in row.get("resolve", {}).items()}
        names.asked.clear()
        try:
            told = await _outcome(row["url"], transport, egress=POLICIES[row["policy"]])
            refused[row["name"]] = [told["detail"], told["processed"]]
        except (ValueError, WorkerError) as error:
            refused[row["name"]] = [type(error).__name__, "no"]
    return {"refused": refused, "dialled": _dialled()}


def _dialled() -> int:
    """Return how many TCP connections this host has begun."""
    lines = Path("/proc/self/net/snmp").read_text("ascii").splitlines()
    keys, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[keys.index("ActiveOpens")])


def _main() -> None:
    try:
        names = _prepare()
    except (OSError, subprocess.SubprocessError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(_CANNOT)
    print(json.dumps(asyncio.run(_everything(names, sys.argv[1]))))


if __name__ == "__main__":
    _main()
