"""The egress policy as a Python object, and its enforcement where connections are made."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.transports import both_transports
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import PROPS, answer, playing
from worker_adapters import AdapterError, EgressPolicy, EgressVerdict, LlamaCppAdapter
from worker_adapters.transport import Progress, Request, TransportError, read_body
from worker_adapters.transport import _connect as module
from worker_adapters.transport._connect import Dialer
from worker_adapters.transport._httpx import HttpxTransport

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = both_transports

GET = Request("GET", "/x")


async def answering(connection: Any) -> None:
    while True:
        await connection.request()
        await connection.send(answer(PROPS))


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let the running loop's resolver give these answers in turn; return what it is asked."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in found
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def opened(transport: HttpxTransport) -> bytes:
    body = await transport.open(GET, Progress(), connect=5.0, tls=5.0)
    data, _ = await read_body(body, 1 << 20)
    await body.aclose()
    return data


async def refused(transport: HttpxTransport) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await opened(transport)
    await transport.aclose()
    return caught.value


# The object.


def test_a_policy_shows_what_it_allows() -> None:
    policy = EgressPolicy(allow=["http://10.20.0.0/16:8000", "https://*"], allow_private=True)
    assert policy.allow == ["http://10.20.0.0/16:8000", "https://*:443"]
    assert (policy.allow_loopback, policy.allow_private, policy.allow_nat64) == (False, True, False)
    assert repr(policy) == (
        "EgressPolicy(allow=['http://10.20.0.0/16:8000', 'https://*:443'], allow_loopback=False, "
        "allow_private=True, allow_nat64=False)"
    )
    assert eval(repr(policy), {"EgressPolicy": EgressPolicy}) == policy
    assert len({policy, EgressPolicy(allow=policy.allow, allow_private=True)}) == 1
    assert policy != EgressPolicy(allow=policy.allow)


def test_a_policy_and_a_verdict_are_frozen() -> None:
    policy = EgressPolicy(allow=["https://*"])
    with pytest.raises(AttributeError):
        policy.allow = []  # type: ignore[misc]
    with pytest.raises(AttributeError):
        policy.check("https://93.184.216.34").allowed = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        EgressPolicy(["https://*"])  # type: ignore[call-arg]


def test_what_a_verdict_says() -> None:
    policy = EgressPolicy(allow=["https://*:*"])
    allowed = policy.check("https://API.example.com:8443/v1?key=hunter22", ["93.184.216.34"])
    assert (allowed.allowed, allowed.reason, allowed.message) == (True, "ok", "")
    assert (allowed.host, allowed.port) == ("api.example.com", 8443)
    assert repr(allowed) == "EgressVerdict(allowed=True, reason='ok')"
    denied = policy.check("https://api.example.com/?key=hunter22", [ip_address("10.1.2.3")])
    assert not denied
    assert (denied.host, denied.port) == (None, None)
    assert denied.message == (
        "the egress policy does not allow the host a private address: 10.1.2.3"
    )
    assert isinstance(denied, EgressVerdict)
    assert policy.check_url("https://api.example.com").allowed
    assert policy.check("https://api.example.com").reason == "resolve"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("api.example.com", "must start with http:// or https://"),
        ("http://host:0", "port from 1 to 65535"),
        ("https://user:hunter22@host", "scheme://host"),
        ("https://host/hunter22", "scheme://host"),
        ("http://10.20.1.0/16", "bits set beyond its prefix"),
        ("http://169.254.169.254", "never allowed"),
        ("http://*", "is for https alone"),
    ],
)
def test_entries_that_cannot_be_meant(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"^allow\[1\] ") as caught:
        EgressPolicy(allow=["https://fine.example", pattern])
    assert why in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_what_is_no_address() -> None:
    policy = EgressPolicy(allow=["https://*"])
    with pytest.raises(ValueError, match="address"):
        policy.check("https://host", ["host"])


@pytest.mark.parametrize(
    "url",
    ["http://host\ud800", "http://host/?key=hunter22\udfff", "\ud800", "http://\ud83d\ude00\ud83d"],
)
def test_a_lone_surrogate_makes_no_url(url: str) -> None:
    policy = EgressPolicy(allow=["https://*", "http://host"])
    for verdict in (policy.check(url, ["93.184.216.34"]), policy.check_url(url)):
        assert (verdict.allowed, verdict.reason) == (False, "parse")
        assert verdict.message == "the URL is not an absolute one with a valid host"
    with pytest.raises(ValueError, match=r"^base_url cannot be connected to: ") as of_url:
        EgressPolicy.for_base_url(url)
    with pytest.raises(ValueError, match=r"^allow\[1\] must ") as of_entry:
        EgressPolicy(allow=["https://*", url])
    for caught in (of_url, of_entry):
        # The codec's own error is a ValueError, too, and holds the text.
        assert type(caught.value) is ValueError
        assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("address", ["\ud800", "10.0.0.1\udfff", "", "10.0.0.256", None])
def test_what_is_no_address_is_named(address: Any) -> None:
    policy = EgressPolicy(allow=["https://*"])
    with pytest.raises(ValueError, match=r"^addresses\[1\] is no IP address$") as caught:
        policy.check("https://host", ["93.184.216.34", address])
    assert type(caught.value) is ValueError


POLICIES = [
    EgressPolicy(allow=[]),
    EgressPolicy(allow=["http://10.20.0.0/16:8000", "https://*:*"], allow_private=True),
    EgressPolicy(allow=["http://[::1]"], allow_loopback=True, allow_nat64=True),
    EgressPolicy.for_base_url("http://engine.internal:8000/v1"),
    EgressPolicy.for_base_url("http://[::1]:8000"),
    # Lists what is never allowed, which the constructor would refuse.
    EgressPolicy.for_base_url("http://169.254.169.254"),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_policy_survives_pickle_and_copies(policy: EgressPolicy, protocol: int) -> None:
    pickled = pickle.loads(pickle.dumps(policy, protocol))
    for twin in (pickled, copy.copy(policy), copy.deepcopy(policy)):
        assert twin == policy
        assert repr(twin) == repr(policy)
        assert hash(twin) == hash(policy)


def test_the_policy_of_a_base_url() -> None:
    policy = EgressPolicy.for_base_url("http://engine.internal:8000/v1")
    assert policy.allow == ["http://engine.internal:8000"]
    assert policy.check("http://engine.internal:8000/x", ["10.0.0.1", "::1"])
    assert policy.check("http://engine.internal:8001/x", ["10.0.0.1"]).reason == "not_in_allowlist"
    with pytest.raises(ValueError, match=r"^base_url cannot be connected to: ") as caught:
        EgressPolicy.for_base_url("http://user:hunter22@host")
    assert "hunter22" not in str(caught.value)


def test_an_adapter_at_no_address() -> None:
    with pytest.raises(ValueError, match="base_url"):
        LlamaCppAdapter("http://1.2.3.4.5:8080")


# Where connections are made.


async def test_a_name_is_resolved_once_and_its_address_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with playing(answering) as server:
        asked = names(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
        url = f"http://engine.internal:{port_of(server.url)}"
        transport = HttpxTransport(url)
        assert await opened(transport)
        assert await opened(transport)
        assert asked == ["engine.internal"]
        assert len(server.connections) == 1
        await transport.aclose()
        # A new connection asks anew, and what it is told is judged anew.
        error = await refused(HttpxTransport(url))
    assert (error.detail, error.phase, error.processed) == ("egress_denied", "resolve", "no")
    assert error.message == "the host is the metadata service of a cloud: 169.254.169.254"
    assert asked == ["engine.internal"] * 2
    assert len(server.connections) == 1
    assert server.requests("/x")[0].headers["host"] == url.removeprefix("http://")


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_one_forbidden_answer_forbids_all(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with playing(answering) as server:
        answers = ["127.0.0.1", "127.0.0.1"]
        answers.insert(at, "169.254.1.1")
        names(monkeypatch, answers)
        error = await refused(HttpxTransport(f"http://engine.internal:{port_of(server.url)}"))
    assert error.detail == "egress_denied"
    assert server.connections == []


async def test_what_the_url_forbids_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, ["127.0.0.1"])
    policy = EgressPolicy(allow=["http://engine.internal:8000"], allow_loopback=True)
    for url in ("http://other.internal:8000", "http://engine.internal", "https://engine.internal"):
        error = await refused(HttpxTransport(url, egress=policy))
        assert (error.detail, error.phase) == ("egress_denied", "resolve")
    assert asked == []


async def test_denied_means_that_nobody_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = EgressPolicy(allow=["https://*:*"])
    async with playing(answering) as server:
        port = port_of(server.url)
        names(monkeypatch, ["127.0.0.1"])
        for host in (
            "127.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "[::ffff:127.0.0.1]",
            "x.io",
        ):
            error = await refused(HttpxTransport(f"https://{host}:{port}", egress=policy))
            assert error.detail == "egress_denied", host
        assert server.connections == []


async def test_another_spelling_is_the_same_host() -> None:
    async with playing(answering) as server:
        port = port_of(server.url)
        policy = EgressPolicy(allow=[f"http://127.0.0.1:{port}"])
        for host in ("127.1", "0x7f.1", "[::ffff:7f00:1]"):
            transport = HttpxTransport(f"http://{host}:{port}", egress=policy)
            assert await opened(transport)
            await transport.aclose()
    assert len(server.connections) == 3


async def test_the_peer_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    names(monkeypatch, ["93.184.216.34"])
    async with playing(answering) as server:
        port = port_of(server.url)

        async def create_connection(factory: Any, _: str, port: int) -> Any:
            return await connect(factory, "127.0.0.1", port)

        monkeypatch.setattr(loop, "create_connection", create_connection)
        policy = EgressPolicy(allow=[f"http://engine.example:{port}"])
        error = await refused(HttpxTransport(f"http://engine.example:{port}", egress=policy))
        assert (error.detail, error.phase, error.processed) == ("egress_denied", "connect", "no")
        await server.connections[0].over()
        assert server.requests("/x") == []


async def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, [])
    error = await refused(HttpxTransport("http://engine.internal:8000"))
    assert (error.detail, error.phase, error.processed) == ("resolve", "resolve", "no")


async def test_what_an_adapter_says_of_it() -> None:
    policy = EgressPolicy(allow=["https://*"])
    async with playing(answering) as server, LlamaCppAdapter(server.url, egress=policy) as adapter:
        with pytest.raises(AdapterError) as of_call:
            await adapter.engine_version()
        with pytest.raises(AdapterError) as of_task:
            await adapter.submit(task())
        health = await adapter.health()
        assert server.connections == []
    for error in (of_call.value, of_task.value):
        assert (error.detail, error.code, error.retriable) == (
            "egress_denied",
            "INVALID_PARAMS",
            False,
        )
        assert (error.phase, error.processed) == ("resolve", "no")
        assert "does not allow the scheme" in error.message
    assert (health.live, health.ready, health.reason) == (False, False, "egress_denied")


async def test_of_an_injected_client_the_url_is_judged() -> None:
    policy = EgressPolicy(allow=["http://127.0.0.1:1"])

    async def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="ok")

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        assert await opened(HttpxTransport("http://127.0.0.1:1", client=client, egress=policy))
        assert await opened(HttpxTransport("http://engine.internal", client=client))
        error = await refused(HttpxTransport("http://127.0.0.1:2", client=client, egress=policy))
        assert (error.detail, error.processed) == ("egress_denied", "no")
        error = await refused(HttpxTransport("http://169.254.169.254", client=client))
        assert error.detail == "egress_denied"


# One of several addresses.


class Attempts:
    """Connections that are made, refused or left hanging by their address, on virtual time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **outcome: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.began: dict[str, float] = {}
        self.transports: dict[str, Transport] = {}
        self.cancelled: list[str] = []
        self._outcome = {"10.0.0." + name[1:]: what for name, what in outcome.items()}
        self._start = self.loop.time()
        names(monkeypatch, list(self._outcome))
        monkeypatch.setattr(self.loop, "create_connection", self.create_connection)

    async def create_connection(self, factory: Callable[[], Any], host: str, _: int) -> Any:
        self.began[host] = round(self.loop.time() - self._start, 3)
        if self._outcome[host] == "refused":
            raise ConnectionRefusedError
        try:
            await asyncio.sleep(float(self._outcome[host]))
        except asyncio.CancelledError:
            self.cancelled.append(host)
            raise
        self.transports[host] = Transport(host)
        return self.transports[host], factory()

    async def connect(self) -> None:
        url = "http://engine.internal:8000"
        await Dialer(url, EgressPolicy.for_base_url(url), asyncio.Protocol).connect()


class Transport:
    def __init__(self, host: str) -> None:
        self._host: str | None = host
        self.aborted = False

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        if name != "peername" or self._host is None:
            return None
        return self._host, 8000

    def abort(self) -> None:
        self.aborted = True


def virtually(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[Attempts], Any], **outcome: str
) -> None:
    async def main() -> None:
        await check(Attempts(monkeypatch, **outcome))

    run_virtually(main())
    gc.collect()


def test_a_slow_address_gets_company(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        await attempts.connect()
        assert attempts.began == {"10.0.0.1": 0.0, "10.0.0.2": module.HAPPY_EYEBALLS_SECONDS}
        await asyncio.sleep(0)
        assert attempts.cancelled == ["10.0.0.1"]

    virtually(monkeypatch, check, a1="30", a2="0.01", a3="0.01")


def test_a_refused_address_gives_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        await attempts.connect()
        assert attempts.began == {"10.0.0.1": 0.0, "10.0.0.2": 0.0}

    virtually(monkeypatch, check, a1="refused", a2="0.01")


def test_all_addresses_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        with pytest.raises(ConnectionRefusedError):
            await attempts.connect()
        assert len(attempts.began) == 3

    virtually(monkeypatch, check, a1="refused", a2="refused", a3="refused")


def test_of_two_connections_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        await attempts.connect()
        await asyncio.sleep(1)
        aborted = [made.aborted for made in attempts.transports.values()]
        assert sorted(aborted) == [False, True]

    virtually(monkeypatch, check, a1="0.5", a2="0.25")


def test_who_gives_up_closes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await attempts.connect()
        await asyncio.sleep(0)
        assert sorted(attempts.cancelled) == ["10.0.0.1", "10.0.0.2"]

    virtually(monkeypatch, check, a1="30", a2="30")


@pytest.mark.parametrize("bound", [1.2499, 1.25, 1.2501])
def test_who_gives_up_just_then_closes_all(bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        won = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(bound):
                await attempts.connect()
                won = True
        await asyncio.sleep(0)
        assert "10.0.0.1" in attempts.cancelled
        assert won or all(made.aborted for made in attempts.transports.values())
        assert len(attempts.cancelled) + len(attempts.transports) == 2

    virtually(monkeypatch, check, a1="30", a2="1")


def test_a_peer_that_has_gone_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(attempts: Attempts) -> None:
        monkeypatch.setattr(Transport, "get_extra_info", lambda *_: None)
        with pytest.raises(ConnectionResetError):
            await attempts.connect()
        assert attempts.transports["10.0.0.1"].aborted

    virtually(monkeypatch, check, a1="0")


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, ["fd00::1", "fd00::2", "fd00::1", "10.0.0.1", "fd00::3%eth0"])
    assert await module._resolved("engine.internal", 8000) == [
        *("fd00::1", "10.0.0.1", "fd00::2", "fd00::3")
    ]
