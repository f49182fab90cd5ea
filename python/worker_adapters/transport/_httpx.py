"""The transport over httpx: the only module that imports it.

An adapter's own client has its connections from `_network`; an injected client brings whatever it
has. One client per running event loop, made when it is first
needed, so that one adapter serves any number of `asyncio.run` calls. Clocks are ours: httpx is
given none but the wait for a free connection, and the steps of connecting are bounded as they are
reported by its trace hook.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import chain
from typing import Any, Final, Literal, TypeAlias, cast
from weakref import WeakSet

import httpx

from worker_adapters._core import EgressPolicy, __version__
from worker_adapters._secret import SecretBytes
from worker_adapters.transport import Headers, Progress, Request, TransportError, flaw_of
from worker_adapters.transport._connect import denied
from worker_adapters.transport._network import ConnectionPool, PooledResponse

__all__ = ["Client", "HttpxTransport"]

Client: TypeAlias = httpx.AsyncClient
"""What may be injected; named here so that nobody else needs to import httpx."""

MAX_REQUESTS: Final = 1024
"""How many requests of one adapter may be under way at a time; each has a connection."""

MAX_WAITING: Final = 1024
"""How many more may wait until one of them is over."""

MAX_IDLE_CONNECTIONS: Final = 64
"""How many connections are kept for later requests."""

IDLE_CONNECTION_SECONDS: Final = 4.0
"""Below the 5 s after which llama.cpp closes an idle connection, so that none is used stale."""
POOL_WAIT_SECONDS: Final = 5.0
"""How long a request waits when that many are."""


class HttpxTransport:
    """Sends requests to ``base_url`` through httpx.

    ``headers`` go with every request and may hold secrets: they show in no repr. An injected
    ``client`` is used as it is (its TLS, proxies and limits) and never closed here; it must be used
    in one event loop only. ``egress`` is asked about every connection, of an injected client, which
    makes its own, about the URL only; unset, it allows what the base URL says and nothing else.
    ``ssl_context`` makes what https is spoken with, the public CAs being trusted without it.

    Raises ValueError for a base URL that no URL parser would take.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Headers = (),
        client: httpx.AsyncClient | None = None,
        egress: EgressPolicy | None = None,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._base_url = base_url
        self._ssl_context = ssl_context
        self._egress = EgressPolicy.for_base_url(base_url) if egress is None else egress
        self._headers = tuple(_unseen(headers, ((b"Accept-Encoding", b"identity"),)))
        self._injected = client
        self._urls: dict[str, httpx.URL] = {}
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    async def open(
        self,
        request: Request,
        progress: Progress,
        *,
        connect: float | None,
        tls: float | None,
    ) -> "_HttpxStream":
        """Send ``request`` and return when the response head is there. See `Transport.open`."""
        if flaw := flaw_of(request):
            raise TransportError("invalid_request", "validate", "no", message=flaw)
        url = self._url(request.path)
        session = self._session()
        if self._injected is not None:
            # Its transport may report no steps: assume the request on its way until told otherwise.
            progress.phase = "head"
        clock = asyncio.timeout(None)
        trace = _Trace(progress, clock, {"connect": connect, "tls": tls})
        try:
            async with clock:
                outgoing = session.client.build_request(
                    request.method,
                    url,
                    headers=_unseen(self._headers, request.headers),
                    content=SecretBytes(request.body) if request.body else None,
                    timeout=httpx.Timeout(None, pool=POOL_WAIT_SECONDS),
                    extensions={"trace": trace},
                )
                response = await session.client.send(outgoing, stream=True, follow_redirects=False)
        except TimeoutError:
            detail = "tls_timeout" if progress.phase == "tls" else "connect_timeout"
            raise TransportError(detail, progress.phase, "no") from None
        except _FAILURES as error:
            raise _before_the_head(error, progress) from None
        return _HttpxStream(response, session)

    async def aclose(self) -> None:
        """Close what this transport opened in the running loop; other loops' is let go."""
        own = self._sessions.pop(asyncio.get_running_loop(), None)
        self._sessions.clear()
        if own is not None:
            await own.aclose()

    def _url(self, path: str) -> httpx.URL:
        """Return the URL of a path. Raises TransportError where there may or can be none."""
        url = self._urls.get(path)
        if url is None:
            verdict = self._egress.check_url(self._base_url + path)
            if not verdict:
                raise denied(verdict, "resolve")
            try:
                url = self._urls[path] = httpx.URL(self._base_url + path)
            except httpx.InvalidURL:
                # The policy reads URLs as browsers do, and takes what httpx does not.
                raise TransportError("invalid_request", "validate", "no") from None
        return url

    def _session(self) -> "_Session":
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            for other in [other for other in self._sessions if other.is_closed()]:
                del self._sessions[other]
            session = self._sessions[loop] = _Session(
                loop, self._injected, self._base_url, self._egress, self._ssl_context
            )
        return session


class _Session:
    """What belongs to one event loop: a client, the streams it has open, and their last rites.

    An asynchronous generator, suspended for as long as the session lives, is what the loop
    finalises when it shuts down: `asyncio.run` therefore never ends with a connection open, and a
    session nobody refers to any more closes itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        injected: httpx.AsyncClient | None,
        base_url: str,
        egress: EgressPolicy,
        ssl_context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self.loop = loop
        self.client = _client(base_url, egress, ssl_context) if injected is None else injected
        self.streams: WeakSet[_HttpxStream] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        owned = None if injected is not None else self.client
        self._guard = _closed_with_the_loop(owned, self.streams, self._tasks)
        with contextlib.suppress(StopIteration):
            self._guard.__anext__().send(None)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` to its end whatever happens to the task that asked for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        await self._guard.aclose()


async def _closed_with_the_loop(
    client: httpx.AsyncClient | None,
    streams: "WeakSet[_HttpxStream]",
    tasks: "set[asyncio.Task[None]]",
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        for stream in list(streams):
            stream.abort()
        try:
            if tasks:
                await asyncio.wait(set(tasks), timeout=1.0)
        finally:
            # Also when the loop ends meanwhile, and cancels this.
            if client is not None:
                await client.aclose()


def _client(
    base_url: str, egress: EgressPolicy, ssl_context: Callable[[], ssl.SSLContext] | None
) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=_Pool(base_url, egress, ssl_context or _public_trust),
        trust_env=False,
        follow_redirects=False,
        headers={"User-Agent": f"worker-adapters/{__version__}"},
        # A jar that accepts nothing: one task's answer must not show in another's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


def _unseen(*headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return headers whose values no traceback shows, whoever passes them on."""
    return [(name, SecretBytes(value)) for name, value in chain(*headers)]


def _public_trust() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


_POOLED: Final = "worker_adapters.response"
"""Where a response of our own pool is found behind what httpx makes of it."""


class _Pool(httpx.AsyncBaseTransport):
    """Our connections, as httpx wants to see them."""

    def __init__(
        self, base_url: str, egress: EgressPolicy, ssl_context: Callable[[], ssl.SSLContext]
    ) -> None:
        secure = httpx.URL(base_url).scheme == "https"
        self._pool = ConnectionPool(
            base_url,
            egress,
            ssl_context=ssl_context() if secure else None,
            max_requests=MAX_REQUESTS,
            max_waiting=MAX_WAITING,
            wait_seconds=POOL_WAIT_SECONDS,
            max_idle=MAX_IDLE_CONNECTIONS,
            idle_seconds=IDLE_CONNECTION_SECONDS,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        trace: _Trace = request.extensions["trace"]
        response = await self._pool.open(
            request.method.encode("ascii"),
            request.url.raw_path,
            request.headers.raw,
            cast("httpx.AsyncByteStream", request.stream),
            trace.step,
        )
        trace.head(response.status)
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_PooledBody(response),
            extensions={_POOLED: response},
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _PooledBody(httpx.AsyncByteStream):
    def __init__(self, response: PooledResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._response.read():
            yield data

    async def aclose(self) -> None:
        self._response.release()


_Step = Literal["connect", "tls", "write", "head"]

_STEPS: Final[Mapping[str, _Step]] = {
    "connection.connect_tcp.started": "connect",
    "connection.connect_unix_socket.started": "connect",
    "connection.start_tls.started": "tls",
    "http11.send_request_headers.started": "write",
    "http2.send_request_headers.started": "write",
    "http11.receive_response_headers.started": "head",
    "http2.receive_response_headers.started": "head",
}


class _Trace:
    """httpx's trace hook: keeps `Progress` and bounds the steps that have a bound."""

    __slots__ = ("_bounds", "_clock", "_progress")

    def __init__(
        self, progress: Progress, clock: asyncio.Timeout, bounds: Mapping[str, float | None]
    ) -> None:
        self._progress = progress
        self._clock = clock
        self._bounds = bounds

    def step(self, step: str) -> None:
        """Note that a step of the exchange begins."""
        if step == "partial_head":
            self._progress.partial_head = True
            return
        self._progress.phase = cast("_Step", step)
        bound = self._bounds.get(step)
        now = asyncio.get_running_loop().time()
        if not self._clock.expired():
            self._clock.reschedule(None if bound is None else now + bound)

    def head(self, status: int) -> None:
        """Note the status of the response."""
        self._progress.status = status

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow an injected client's exchange, as far as its transport reports it."""
        if event in _STEPS:
            self.step(_STEPS[event])
        elif event == "http11.receive_response_headers.complete":
            self.head(info["return_value"][1])


class _HttpxStream:
    """The body of an httpx response as it comes off the wire."""

    def __init__(self, response: httpx.Response, session: _Session) -> None:
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        self._response = response
        self._session = session
        # Either way below httpx's decoders: a compressed body is an error, not a service.
        self._pooled: PooledResponse | None = response.extensions.get(_POOLED)
        self._chunks = aiter(cast("httpx.AsyncByteStream", response.stream))
        self._pending: asyncio.Timeout | None = None
        self._aborted = False
        self._whole = False
        self._ending = False
        self._ended = asyncio.Event()
        session.streams.add(self)

    async def read(self) -> bytes:
        if self._whole:
            return b""
        if self._aborted:
            raise TransportError("reset", "stream")
        data = b""
        try:
            async with asyncio.timeout(None) as self._pending:
                data = await self._read()
            self._whole = not data
        except TimeoutError:
            raise TransportError("reset", "stream") from None
        except _FAILURES as error:
            raise _within_the_body(error) from None
        finally:
            self._pending = None
            if not data or self._aborted:
                self._end()
        return data

    async def _read(self) -> bytes:
        if self._pooled is not None:
            return await self._pooled.read()
        async for data in self._chunks:
            if data:
                return data
        return b""

    def read_nowait(self) -> bytes:
        """Return what has arrived; an injected client cannot tell."""
        if self._pooled is None or self._whole or self._aborted or self._pending is not None:
            return b""
        return self._pooled.read_nowait()

    def abort(self) -> None:
        if self._aborted or self._ending:
            return
        loop = self._session.loop
        if loop.is_closed():
            # Nothing can tidy up any more, but the peer need not wait.
            self._aborted = True
            self._shut_down()
            return
        if loop.is_running() and _running_loop() is not loop:
            with contextlib.suppress(RuntimeError):  # it has just been closed
                loop.call_soon_threadsafe(self.abort)
            return
        self._aborted = True
        self._shut_down()
        if self._pending is not None:
            self._pending.reschedule(loop.time())
        elif loop.is_running():
            self._end()
        else:
            with contextlib.suppress(RuntimeError):  # another thread has just closed it
                loop.call_soon(self._end)

    async def aclose(self) -> None:
        if not self._whole:
            self.abort()
        await self._ended.wait()

    def _end(self) -> None:
        """Have the response closed, in a task of its own that nothing can cancel half-way.

        An injected client's pool forgets a connection whose closing is interrupted.
        """
        if not self._ending:
            self._ending = True
            self._session.run(self._close_response())

    async def _close_response(self) -> None:
        try:
            with contextlib.suppress(*_FAILURES, RuntimeError):
                await self._response.aclose()
            # One that was never begun needs no closing, and a loop that ends warns of it.
            if self._pooled is None and isinstance(self._chunks, AsyncGenerator):
                with contextlib.suppress(*_FAILURES, RuntimeError):
                    await self._chunks.aclose()
        finally:
            self._ended.set()

    def _shut_down(self) -> None:
        """Tell the peer now, before the loop gets round to closing the connection.

        Not where requests share the connection: there closing the response resets its stream.
        """
        shared = self._socket()
        if shared is None:
            return
        # Of the sockets that loops hand out, some can do nothing but tell their number.
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(shared.fileno())) as own,
        ):
            own.shutdown(socket.SHUT_RDWR)

    def _socket(self) -> Any:
        if self._pooled is not None:
            return self._pooled.socket
        extensions = self._response.extensions
        network_stream = extensions.get("network_stream")
        if network_stream is None or extensions.get("http_version") == b"HTTP/2":
            return None
        return network_stream.get_extra_info("socket")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_FAILURES: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError)
"""What an injected client raises; of our own connections only OSError is left to be translated."""

# httpx has one exception for everything a peer can do wrong, and no attribute that tells a body
# cut off from one that is malformed; its message is the only sign. The tests pin both.
_CUT_OFF: Final = ("peer closed connection", "Server disconnected")

_UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN}
)


def _before_the_head(error: Exception, progress: Progress) -> TransportError:
    phase = progress.phase
    if progress.status is not None and 300 <= progress.status < 400:
        # httpx looks at a Location it does not follow, and may choke on it.
        return TransportError("redirect", "head", "no")
    match error:
        case httpx.PoolTimeout():
            return TransportError("saturated", "queue", "no")
        case httpx.ConnectTimeout():
            return TransportError(
                "tls_timeout" if phase == "tls" else "connect_timeout", phase, "no"
            )
        case httpx.ConnectError() | OSError():
            detail = _connect_detail(error, phase)
            return TransportError(detail, "resolve" if detail == "resolve" else phase, "no")
        case httpx.ProxyError():
            return TransportError("proxy_auth", "connect", "no")
        case httpx.RemoteProtocolError():
            if not str(error).startswith(_CUT_OFF):
                return TransportError("protocol", "head")
        case httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return TransportError("invalid_request", "validate", "no")
        case httpx.LocalProtocolError():
            return TransportError("invalid_request", "validate", "no")
        case httpx.DecodingError():
            return TransportError("content_encoding", "head")
    return TransportError("reset", "head" if phase == "head" else "write")


def _within_the_body(error: Exception) -> TransportError:
    if isinstance(error, httpx.RemoteProtocolError):
        cut_off = str(error).startswith(_CUT_OFF)
        return TransportError("truncated" if cut_off else "framing", "stream", "yes")
    return TransportError("reset", "stream", "yes")


def _connect_detail(error: BaseException, phase: str) -> str:
    for cause in _causes(error):
        match cause:
            case socket.gaierror():
                return "resolve"
            case ssl.SSLCertVerificationError():
                return "tls_verify"
            case ssl.SSLError():
                return "tls"
            case OSError(errno=errno.EMFILE | errno.ENFILE):
                return "fd"
            case OSError(errno=number) if number in _UNREACHABLE:
                return "local"
    return "tls" if phase == "tls" else "connect"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Walk ``error`` and everything behind it, groups included; httpx hides the cause deep."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += (current.__cause__, current.__context__)
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions
