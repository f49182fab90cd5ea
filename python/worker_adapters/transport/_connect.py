"""From a URL to a socket that the egress policy allows.

The policy reads the URL, and what it read is what is resolved, once. It judges every address, one
of these very addresses is connected to, and the peer's is judged again: between the judgement and
the connection nobody gets to answer a second time.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import Any, Final, Generic, TypeAlias, TypeVar

from worker_adapters._core import EgressPolicy, EgressVerdict
from worker_adapters.transport import TransportError

__all__ = ["Dialer", "denied"]

HAPPY_EYEBALLS_SECONDS: Final = 0.25
"""How long one address of a name may take before the next is tried beside it."""

# A peer that has gone without a word is noticed by the kernel, as on native sockets: probes after
# `KEEPALIVE_IDLE_SECONDS` without a packet, and what was sent may wait so long to be acknowledged.
KEEPALIVE_IDLE_SECONDS: Final = 15
KEEPALIVE_INTERVAL_SECONDS: Final = 5
KEEPALIVE_PROBES: Final = 3
USER_TIMEOUT_MS: Final = 30_000

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

_Connection: TypeAlias = tuple[asyncio.Transport, _P]


def denied(verdict: EgressVerdict, phase: str) -> TransportError:
    """Return the error for a connection that must not be made."""
    return TransportError("egress_denied", phase, "no", message=verdict.message)


class Dialer(Generic[_P]):
    """Connects to where ``url`` leads, as far as ``egress`` allows it."""

    def __init__(self, url: str, egress: EgressPolicy, factory: Callable[[], _P]) -> None:
        self._url = url
        self._egress = egress
        self._factory = factory
        self._verdict = egress.check_url(url)

    @property
    def host(self) -> str:
        """The name that a certificate must be for. Raises TransportError if it is forbidden."""
        host = self._verdict.host
        if host is None:
            raise denied(self._verdict, "resolve")
        return host

    async def connect(self) -> _P:
        """Return the protocol of a new connection. Raises TransportError; OSError."""
        host, port = self.host, self._verdict.port or 0
        addresses = [host] if _is_address(host) else await _resolved(host, port)
        verdict = self._egress.check(self._url, addresses)
        if not verdict:
            raise denied(verdict, "resolve")
        transport, protocol = await _first(
            [partial(self._connected, address, port) for address in addresses]
        )
        try:
            _watch(transport)
            self._judge_peer(transport)
        except BaseException:
            transport.abort()
            raise
        return protocol

    def _judge_peer(self, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        if peer is None:  # it has gone again
            raise ConnectionResetError
        verdict = self._egress.check(self._url, [_without_zone(peer[0])])
        if not verdict:
            raise denied(verdict, "connect")

    async def _connected(self, address: str, port: int) -> _Connection[_P]:
        loop = asyncio.get_running_loop()
        return await loop.create_connection(self._factory, address, port)


def _watch(transport: asyncio.Transport) -> None:
    """Have the kernel look after a peer that says nothing (RFC 9293, section 3.8.4; RFC 5482)."""
    shared = transport.get_extra_info("socket")
    if shared is None:  # a loop that shows none
        return
    # Of the sockets that loops hand out, some can do nothing but tell their number.
    with socket.socket(fileno=os.dup(shared.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
            ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
            ("TCP_KEEPCNT", KEEPALIVE_PROBES),
            ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
        ):
            # Not every system has every one of them.
            option = getattr(socket, name, None)
            if option is not None:
                own.setsockopt(socket.IPPROTO_TCP, option, value)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _resolved(host: str, port: int) -> list[str]:
    """Return the addresses of a name, both families by turns, the preferred one first."""
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families: dict[int, dict[str, None]] = {}
    for family, _, _, _, address in answers:
        families.setdefault(family, {})[_without_zone(str(address[0]))] = None
    turns = chain.from_iterable(zip_longest(*families.values()))
    addresses = [address for address in turns if address is not None]
    if not addresses:
        raise TransportError("resolve", "resolve", "no")
    return addresses


def _without_zone(address: str) -> str:
    return address.partition("%")[0]


async def _first(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, _Connection[_P]]]],
) -> _Connection[_P]:
    """Return the first connection that is made (RFC 8305). Raises the last attempt's OSError."""
    if len(attempts) == 1:
        return await attempts[0]()
    waiting = deque(attempts)
    running: set[asyncio.Task[_Connection[_P]]] = set()
    try:
        while True:
            if waiting:
                running.add(asyncio.create_task(waiting.popleft()()))
            done, _ = await asyncio.wait(
                running,
                timeout=HAPPY_EYEBALLS_SECONDS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                running.discard(attempt)
                try:
                    return attempt.result()
                except OSError:
                    if not waiting and not running:
                        raise
    finally:
        _give_up(running)


def _give_up(attempts: Iterable[asyncio.Task[_Connection[Any]]]) -> None:
    """Close what these make or have made, without waiting for it."""
    for attempt in attempts:
        attempt.cancel()
        attempt.add_done_callback(_close)


def _close(attempt: asyncio.Task[_Connection[Any]]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result()[0].abort()
