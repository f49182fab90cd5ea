"""Every conformance vector of the egress policy: by its verdict, and by what is connected to."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.transports import both_transports
from tests.unit.wire import playing
from worker_adapters import AdapterError, EgressPolicy, LlamaCppAdapter
from worker_adapters.transport import TransportError
from worker_adapters.transport._connect import Dialer

pytestmark = both_transports

VECTORS = Path(__file__).parents[1] / "vectors"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (VECTORS / "urls.jsonl").read_text("ascii").splitlines()
]
DESCRIBED: dict[str, Any] = json.loads((VECTORS / "urls_policies.json").read_text("ascii"))

POLICIES = {
    "public": EgressPolicy(allow=[f"{scheme}://*:*" for scheme in DESCRIBED["public"]["schemes"]]),
    "lan": EgressPolicy(allow=DESCRIBED["lan"]["allow"]),
}

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])


def answers(row: dict[str, Any]) -> list[str]:
    """Return what the row's name server says of the row's host."""
    url = row["url"].replace("b\u00fccher", "xn--bcher-kva")
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return []
    found: list[str] = row.get("resolve", {}).get(host, [])
    return found


def test_all_vectors_are_here() -> None:
    assert len(ROWS) == 121
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    assert {row["policy"] for row in ROWS} == set(POLICIES)
    for policy in POLICIES:
        described = DESCRIBED[policy]
        assert (described["userinfo"], described["redirects"]) == (False, False)
    assert DESCRIBED["public"]["hosts"] == "any"
    assert DESCRIBED["public"]["ip"] == "global unicast only"


@each_row
def test_the_verdict(row: dict[str, Any]) -> None:
    verdict = POLICIES[row["policy"]].check(row["url"], answers(row))
    redirected = verdict.allowed and "redirect_to" in row
    assert (verdict.reason if not redirected else "redirect") == row["reason"]
    assert (verdict.allowed and not redirected) is row["allowed"]
    assert bool(verdict) is verdict.allowed
    assert (verdict.message == "") is verdict.allowed
    for secret in ("pw", "evil", "hi\0", "passwd"):
        assert secret not in f"{verdict.message} {verdict!r}"


class Network:
    """Stands for the resolver and the network of the running loop, and keeps what is asked of it.

    The second answer of the resolver is another one where the row says so.
    """

    def __init__(self, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.connected: list[str] = []
        self._answers = [row.get("resolve", {}), row.get("resolve_second", {})]
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", self.getaddrinfo)
        monkeypatch.setattr(loop, "create_connection", self.create_connection)

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        found = self._answers[min(len(self.asked), 2) - 1].get(host)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = socket.SOCK_STREAM
        return [
            (socket.AF_INET6, kind, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, kind, 6, "", (address, port))
            for address in found
        ]

    async def create_connection(self, _: Any, host: str, __: int) -> Any:
        self.connected.append(host)
        raise ConnectionRefusedError


@each_row
async def test_what_is_connected_to(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(row, monkeypatch)
    dialer = Dialer(row["url"], POLICIES[row["policy"]], asyncio.Protocol)
    if row["allowed"] or "redirect_to" in row:
        with pytest.raises(ConnectionRefusedError):
            await dialer.connect()
        vetted = answers(row) or [dialer.host]
        assert sorted(network.connected) == sorted(vetted)
        assert network.connected[:1] == [row.get("connect_ip", network.connected[0])]
        assert len(network.asked) == (1 if answers(row) else 0)
    else:
        with pytest.raises(TransportError) as caught:
            await dialer.connect()
        error = caught.value
        assert (error.detail, error.phase, error.processed) == ("egress_denied", "resolve", "no")
        assert network.connected == []


REDIRECTS = [row for row in ROWS if "redirect_to" in row]


@pytest.mark.parametrize("row", REDIRECTS, ids=lambda row: row["name"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_told_and_not_followed(row: dict[str, Any], status: int) -> None:
    async def script(connection: Any) -> None:
        await connection.request()
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {row['redirect_to']}\r\n"
        await connection.send(f"{head}Content-Length: 0\r\n\r\n".encode())
        await connection.until_closed()

    async with playing(script) as server, LlamaCppAdapter(server.url) as adapter:
        with pytest.raises(AdapterError) as caught:
            await adapter.engine_version()
    assert caught.value.detail == row["reason"] == "redirect"
    assert caught.value.status == status
    assert row["redirect_to"] not in str(caught.value)
    assert len(server.connections) == 1
