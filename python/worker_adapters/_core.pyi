"""Types of the compiled core. Checked against the built module by stubtest in `make lint`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Final, Literal, TypeAlias, final

from worker_adapters.observe.collector import MetricsCollector

__version__: Final[str]

@final
class SseEvent:
    """One dispatched server-sent event (WHATWG HTML, section 9.2.6)."""

    __match_args__: ClassVar[tuple[str, ...]]
    @property
    def event(self) -> str:
        """Event type; ``"message"`` unless the block named one."""
    @property
    def data(self) -> str:
        """The block's data lines joined by ``"\\n"``."""
    @property
    def id(self) -> str:
        """The last event id in force at dispatch; ``""`` when none was set."""
    @property
    def retry(self) -> int | None:
        """The block's valid ``retry`` field in milliseconds, if it had one."""

@final
class SseDecoder:
    """Incremental decoder of ``text/event-stream`` bytes in any chunking.

    ``max_event_bytes`` bounds what one event may buffer. Past it ``feed`` raises `AdapterError`
    with detail ``frame_too_large``, after which the decoder stays failed. Raises ValueError when
    fed after ``finish``.
    """

    def __new__(cls, *, max_event_bytes: int = 1_048_576) -> SseDecoder: ...
    def feed(self, data: bytes) -> list[SseEvent]:
        """Decode one read; the events it completed, in order.

        What one read completed before an event that is too large is returned, and the error is
        raised by the next call (``feed`` or ``finish``).
        """
    def finish(self) -> None:
        """Tell the decoder that the input has ended. An unfinished block is never dispatched."""
    @property
    def last_event_id(self) -> str: ...
    @property
    def retry(self) -> int | None:
        """The reconnection time last set by the server, in milliseconds."""
    @property
    def unknown_lines(self) -> list[str]:
        """Lines whose field name the standard ignores (the first 8 KiB of them)."""
    @property
    def eof_pending(self) -> str | None:
        """After ``finish()``: the data of a block that no blank line completed."""
    @property
    def eof_partial(self) -> str | None:
        """After ``finish()``: the text of a last line that no line end completed."""
    @property
    def utf8_replaced(self) -> int:
        """How many malformed UTF-8 sequences became U+FFFD."""

_EventKind: TypeAlias = Literal["started", "token", "metrics", "end", "error"]

@final
class TokenEvent:
    """One event of a stream: ``{kind, data}`` of the contract, with typed access to the fields.

    Frozen. A field that the kind does not have is None. Text becomes a Python string on each
    read of ``t``; forwarding with ``to_sse()`` never makes one.
    """

    __match_args__: ClassVar[tuple[str, ...]]
    @property
    def kind(self) -> _EventKind: ...
    @property
    def data(self) -> dict[str, Any]:
        """The event's data as a fresh dict, absent fields left out."""
    @property
    def is_terminal(self) -> bool:
        """Whether this is the stream's ``end`` or ``error``."""
    @property
    def t(self) -> str | None:
        """``token``: the text delta."""
    @property
    def i(self) -> int | None:
        """``token``: its number, from 0 without gaps."""
    @property
    def n(self) -> int | None:
        """``token``: how many tokens it stands for."""
    @property
    def channel(self) -> Literal["content", "reasoning", "tool"] | None: ...
    @property
    def token_ids(self) -> list[int] | None:
        """``token``: the ids of its tokens, where the engine was asked for them."""
    @property
    def logprobs(self) -> list[dict[str, Any]] | None:
        """``token``: ``{token, id?, logprob, top?}`` per token, where the engine was asked.

        ``logprob`` is the natural logarithm of the probability, or None where there is none;
        ``top`` lists the most likely tokens in the same form.
        """
    @property
    def tokens_in(self) -> int | None: ...
    @property
    def cached_tokens_in(self) -> int | None:
        """``metrics``, ``end``: those of ``tokens_in`` that the engine took from its cache."""
    @property
    def tokens_out(self) -> int | None: ...
    @property
    def decode_ms(self) -> int | None: ...
    @property
    def latency_first_token_ms(self) -> int | None: ...
    @property
    def finish_reason(
        self,
    ) -> (
        Literal["stop", "length", "cancelled", "content_filter", "tool_calls", "unknown"] | None
    ): ...
    @property
    def finish_reason_raw(self) -> str | None: ...
    @property
    def stop_reason(self) -> str | None:
        """``end``: the stop word or token id that was matched, where the engine tells."""
    @property
    def usage_source(self) -> Literal["engine", "counted"] | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def engine(self) -> str | None: ...
    @property
    def engine_version(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def correlation_id(self) -> str | None: ...
    @property
    def embeddings(self) -> list[list[float]] | None: ...
    @property
    def scores(self) -> list[dict[str, Any]] | None: ...
    @property
    def code(self) -> str | None:
        """``error``: the ErrorKind."""
    @property
    def message(self) -> str | None:
        """``error``: what happened, redacted."""
    @property
    def retriable(self) -> bool | None: ...
    @property
    def error(self) -> Exception | None:
        """``error``: a fresh `worker_adapters.WorkerError` with every field, ready to raise."""
    def to_sse(self) -> bytes:
        """``event: KIND\\ndata: JSON\\n\\n``, UTF-8, JSON on one line."""
    def to_json(self) -> str:
        """``{"kind":…,"data":{…}}`` on one line."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Redactor:
    """Replaces secrets in text by ``****`` plus six hex digits of their SHA-256.

    Finds the registered ones in any spelling, and others by the name before them, by their place
    in a URL, or by the shape their issuer gave them: docs/redaction.md has the rules. Immutable
    and safe to share. Raises ValueError for a known secret shorter than 6 characters.
    """

    def __new__(cls, known_secrets: Sequence[str] = ()) -> Redactor: ...
    def redact(self, text: str) -> str:
        """``text`` without secrets, in time linear in its length. Doing it twice changes nothing.

        Lone surrogates become U+FFFD.
        """
    def with_secrets(self, known_secrets: Sequence[str]) -> Redactor:
        """A redactor that knows these secrets too."""
    def with_private_texts(self, texts: Sequence[str]) -> Redactor:
        """A redactor that also keeps these texts of a task out of the messages of errors.

        Engines quote what they refuse: a stretch of 12 bytes or more, or a whole shorter text,
        becomes ``[…]``. `redact` itself is not concerned.
        """

@final
class EgressPolicy:
    """What an adapter may connect to. Immutable, hashable, safe to share, and picklable.

    Each entry of ``allow`` is ``scheme://host[:port]``: ``scheme`` is http or https; ``host`` a
    name, an address, a network such as ``10.20.0.0/16`` or ``[fd00::/8]``, or, with https alone,
    ``*``; ``port`` a number, ``*`` for any, or the scheme's own when left out.

    A name, and ``*``, may resolve to global addresses, to those of a listed network of the same
    scheme and port, and to what the other arguments add: ``allow_loopback``; ``allow_private``
    (RFC 1918, ``100.64.0.0/10``, ``fc00::/7``); ``allow_nat64`` (``64:ff9b::/96``, judged as the
    IPv4 address it stands for). Metadata services of clouds, link-local, multicast, unspecified
    and reserved addresses are never allowed, however they are written.

    Raises ValueError, naming the entry by its position, for one that says something else or could
    never allow anything.
    """

    def __new__(
        cls,
        *,
        allow: Sequence[str],
        allow_loopback: bool = False,
        allow_private: bool = False,
        allow_nat64: bool = False,
    ) -> EgressPolicy: ...
    @classmethod
    def for_base_url(cls, base_url: str) -> EgressPolicy:
        """The policy of an adapter that is given none.

        It allows scheme, host and port of the base URL, at whatever address that is not one of
        those never allowed. Raises ValueError for what is no URL of an HTTP server.
        """
    @property
    def allow(self) -> list[str]:
        """The entries in canonical form."""
    @property
    def allow_loopback(self) -> bool: ...
    @property
    def allow_private(self) -> bool: ...
    @property
    def allow_nat64(self) -> bool: ...
    def check(
        self, url: str, addresses: Sequence[str | IPv4Address | IPv6Address] = ()
    ) -> EgressVerdict:
        """Judge a URL and all the addresses that its host resolves to, without connecting.

        One forbidden address forbids the URL. An address in the URL needs none beside it. Raises
        ValueError, naming it by its position, for what is no address.
        """
    def check_url(self, url: str) -> EgressVerdict:
        """Judge a URL before its name is resolved."""
    def __reduce__(self) -> tuple[Any, ...]: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class EgressVerdict:
    """What a policy says of a URL; true where it is allowed."""

    @property
    def allowed(self) -> bool: ...
    @property
    def reason(self) -> str:
        """``ok``, or the stable word for the first thing that is wrong."""
    @property
    def message(self) -> str:
        """A sentence that says what is wrong, and quotes nothing of the URL but an address."""
    @property
    def host(self) -> str | None:
        """Where the URL leads, in canonical form; None when that is not allowed."""
    @property
    def port(self) -> int | None: ...
    def __bool__(self) -> bool: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class ErrorRules:
    """An engine's error rule table, compiled once and applied in Rust.

    Each rule is a mapping: any of the conditions ``status`` (int), ``type`` (str), ``code``
    (str, or an int given as str), ``message`` (a substring), all of which must hold, and the
    outcome ``kind`` (WorkerError), ``error_code`` (ErrorKind), ``detail``, ``retriable`` (bool,
    optional), ``processed`` (optional). The first rule that matches wins; without one the HTTP
    status decides. Raises ValueError, naming rule and key, for anything outside the closed sets.
    """

    def __new__(cls, rules: Sequence[Mapping[str, Any]] = ()) -> ErrorRules: ...
    def __len__(self) -> int: ...

@final
class StreamDecoder:
    """Bytes of one response in, `TokenEvent`s out; the terminal law and every clock of a stream.

    Never reads a clock or a socket: each input carries ``now`` in monotonic seconds, and
    ``next_wakeup()`` says when to call ``tick()``. Durations are seconds; None switches a clock
    off; ``deadline`` is an instant on the same axis as ``now``.

    ``engine`` names the wire dialect (`dialects()` lists them); ``options`` are the dialect's
    own. ``started`` holds what the started event reports beside what the engine says:
    ``engine``, where it is not called like its dialect, ``queue_position``,
    ``predicted_start_ms``, ``engine_version``, ``model``, ``model_digest``, ``seed``,
    ``sampler_profile_version`` and ``correlation_id``. Raises ValueError for an unknown engine,
    option or key.

    ``wall`` is an instant on the axis of ``now`` and what the wall clock said then,
    in seconds since 1970: what a ``Retry-After`` date is counted from where the answer is undated.
    ``metrics`` is where the task is counted.
    """

    def __new__(
        cls,
        engine: str,
        *,
        options: Mapping[str, str] | None = None,
        started: Mapping[str, str | int | None] | None = None,
        rules: ErrorRules | None = None,
        redactor: Redactor | None = None,
        max_event_bytes: int = 1_048_576,
        first_token_timeout: float | None = None,
        token_gap_timeout: float | None = None,
        idle_timeout: float | None = None,
        deadline: float | None = None,
        wall: tuple[float, float] | None = None,
        metrics: TaskMetrics | None = None,
    ) -> StreamDecoder: ...
    def dispatched(self, now: float) -> None:
        """The request has been handed to the transport: the first-token clock starts."""
    def head(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], now: float
    ) -> list[TokenEvent]:
        """The response head. A status other than 200 makes the body an error body."""
    def feed(self, data: bytes, now: float) -> list[TokenEvent]:
        """One network read; the events it completed, in order."""
    def finish(self, now: float, complete: bool = True) -> list[TokenEvent]:
        """The body has ended; ``complete`` says whether HTTP framing was whole."""
    def fail(
        self,
        detail: str,
        phase: str,
        now: float,
        *,
        message: str = "",
        processed: str | None = None,
    ) -> list[TokenEvent]:
        """The transport failed. ``detail`` and ``phase`` are words of the closed sets."""
    def cancel(self, now: float) -> list[TokenEvent]:
        """The caller cancelled: one ``end`` with ``finish_reason: cancelled`` if still running."""
    def reader(self, paused: bool, now: float) -> None:
        """Whether our own reader is the slow side; the token gap is not counted meanwhile."""
    def tick(self, now: float) -> list[TokenEvent]:
        """Let the clocks that have run out fire."""
    def next_wakeup(self) -> float | None:
        """The earliest instant at which a clock runs out, or None."""
    def complete(
        self,
        now: float,
        *,
        tokens_in: int | None = None,
        embeddings: Sequence[Sequence[float]] | None = None,
        scores: Sequence[tuple[int, float]] | None = None,
    ) -> list[TokenEvent]:
        """A unary answer (embedding, rerank) came: ``started`` and ``end`` at once."""
    def hold(self) -> None:
        """From here on, keep the events for `take` and `take_sse`; every input returns ``[]``.

        What nobody has taken, `cancel` takes back, but for a terminal event.
        """
    def take(self, max_events: int | None = None) -> list[TokenEvent]:
        """The oldest events that are kept, all of them by default."""
    def take_sse(self) -> bytes:
        """All events that are kept, as `TokenEvent.to_sse` renders them, in one piece."""
    @property
    def pending(self) -> int:
        """How many events are kept."""
    @property
    def terminal(self) -> TokenEvent | None:
        """The terminal event once it has been produced, taken or not."""
    @property
    def phase(self) -> str:
        """Where the stream is: ``queue``, ``head``, ``first_token``, ``stream`` or ``drain``."""
    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event has been produced."""
    @property
    def tokens_emitted(self) -> int:
        """How many tokens the events produced so far stand for."""
    @property
    def dropped_after_end(self) -> int:
        """Frames that came after the terminal event and were dropped."""
    @property
    def dropped_choices(self) -> int:
        """Frames of a choice other than the first, dropped: one stream has one answer."""
    @property
    def metrics_dropped(self) -> int:
        """``metrics`` events that gave way to a later one before anybody had taken them."""
    @property
    def utf8_replaced(self) -> int:
        """Malformed UTF-8 sequences of the body that became U+FFFD."""

@final
class Reactor:
    """The sockets of one event loop, decoded as they are read.

    The loop watches ``fileno()`` and calls ``turn()`` when it is readable, and ``ring()`` when the
    seconds are over that ``rearm`` was told. ``clock`` tells monotonic seconds, those of
    `time.monotonic` when it is None. With ``threaded`` a thread reads the sockets, and ``fileno()``
    tells of what it has done. In a forked process every call raises RuntimeError.
    """

    def __new__(
        cls,
        rearm: Callable[[float], object],
        *,
        clock: Callable[[], float] | None = None,
        threaded: bool = False,
    ) -> Reactor: ...
    def fileno(self) -> int:
        """What becomes readable when there is something to ``turn`` for."""
    def turn(self) -> bool:
        """Move on every stream for which something came; whether anybody was told of it."""
    def settle(self) -> bool:
        """Do a ``turn`` where a task is running; tasks that are woken go on later."""
    def ring(self) -> bool:
        """Do a ``turn`` at the time that was asked for."""
    def close(self) -> None:
        """End the thread, if there is one, and note that nobody turns any more. Idempotent."""
    @property
    def connections(self) -> int:
        """How many connections there are: in use, at rest or being opened."""
    @property
    def resting(self) -> int:
        """How many of them rest until the next request."""
    @property
    def is_closed(self) -> bool: ...
    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that made it."""

@final
class NativeTarget:
    """One engine's address, for one `Reactor`.

    At most ``max_streams`` tasks are under way at a time, ``max_waiting`` more wait for up to
    ``queue_timeout`` seconds. ``max_idle`` connections are kept for ``idle_timeout`` seconds each.
    ``roots_pem`` are the certificates that are trusted, the machine's own when None. Raises
    ValueError for a URL, a bound or a certificate that cannot be used.
    """

    def __new__(
        cls,
        reactor: Reactor,
        base_url: str,
        *,
        egress: EgressPolicy | None = None,
        roots_pem: bytes | None = None,
        client_cert_pem: bytes | None = None,
        client_key_pem: bytes | None = None,
        max_streams: int = 1024,
        max_waiting: int = 1024,
        queue_timeout: float = 5.0,
        max_idle: int = 64,
        idle_timeout: float = 4.0,
    ) -> NativeTarget: ...
    def submit(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes | None,
        decoder: StreamDecoder,
        unattended: Callable[[], object],
        *,
        connect_timeout: float | None = None,
        tls_timeout: float | None = None,
    ) -> NativeStream:
        """Send a request; ``decoder``, fresh, decodes its answer and belongs to the stream.

        ``unattended`` is called in the loop when something has come and nobody waits for it, and
        when the terminal event is handed over.
        Raises ValueError, and leaves the decoder alone, when the request cannot be written as HTTP.
        """

@final
class NativeStream:
    """One task's answer while it comes."""

    def head(self, future: object) -> bool:
        """Whether the answer is known to be a stream, or to be over; else ``future`` is told."""
    def wait(self, future: object, seen: int = 0) -> bool:
        """Whether more than ``seen`` events can be taken, or as many as ever will be.

        Else the result of ``future`` is set when that changes; the one before is forgotten.
        """
    def take(self, most: int | None = None) -> list[TokenEvent]:
        """Hand over what has come, the oldest first; all, or as many as that."""
    def take_sse(self) -> bytes:
        """Hand over what has come as server-sent events."""
    def cancel(self) -> bool:
        """Cancel the task and close its connection; whether there was anything to cancel.

        Tokens nobody has taken are taken back.
        """
    def close(self) -> None:
        """Let everything go, connection and waiters. Idempotent."""
    @property
    def is_awaited(self) -> bool:
        """Whether somebody reads, or waits in `NativeEvents`."""
    @property
    def is_filling(self) -> bool:
        """Whether somebody reads otherwise than by `NativeEvents`, which then fails."""
    @is_filling.setter
    def is_filling(self, is_filling: bool, /) -> None: ...
    @property
    def pending(self) -> int:
        """How many events can be taken."""
    @property
    def is_full(self) -> bool:
        """Whether nothing more comes before some of them are taken."""
    @property
    def status(self) -> int | None: ...
    @property
    def phase(self) -> str: ...
    @property
    def is_sent(self) -> bool:
        """Whether the engine can have seen anything of the request."""
    @property
    def has_started(self) -> bool:
        """Whether the engine has begun to answer."""
    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, taken or not."""
    @property
    def terminal(self) -> TokenEvent | None:
        """The terminal event, once it exists."""
    @property
    def tokens_emitted(self) -> int: ...
    @property
    def metrics_dropped(self) -> int: ...

@final
class NativeEvents:
    """What iterates over a native stream, for one task at a time: ``async for`` and ``await``.

    ``form`` is ``events``, ``batches`` (lists of all that has come) or ``sse`` (the same as bytes).
    ``owner`` is the stream's `TokenStream`; it is kept alive, told by ``_left()`` when nothing is
    left, and by ``_given_up()`` when the task that waits is cancelled. ``event_loop`` is the loop
    whose tasks iterate.
    """

    def __new__(
        cls,
        owner: object,
        stream: NativeStream,
        event_loop: object,
        form: Literal["events", "batches", "sse"],
    ) -> NativeEvents: ...
    def __aiter__(self) -> NativeEvents: ...
    def __anext__(self) -> NativeEvents: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def __iter__(self) -> NativeEvents: ...
    def __next__(self) -> Any: ...
    def send(self, value: object) -> Any: ...
    def throw(self, kind: object, value: object = None, traceback: object = None) -> None: ...
    def close(self) -> None: ...

def dialects() -> list[str]:
    """The wire dialects `StreamDecoder` knows, sorted."""

def error_kinds() -> list[str]:
    """Every WorkerError kind."""

def error_codes() -> list[str]:
    """Every ErrorKind code."""

def error_details() -> list[str]:
    """Every stable word that ``WorkerError.detail`` may hold."""

def error_phases() -> list[str]:
    """Every phase in which an error can arise."""

def make_error(
    engine: str,
    detail: str,
    phase: str,
    *,
    message: str = "",
    redactor: Redactor | None = None,
    correlation_id: str | None = None,
    status: int | None = None,
    processed: str | None = None,
    retry_after_ms: int | None = None,
) -> Exception:
    """A `worker_adapters.WorkerError` for a stable word, classified as a stream's errors are."""

def classify_response(
    engine: str,
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    phase: str = "head",
    rules: ErrorRules | None = None,
    redactor: Redactor | None = None,
    correlation_id: str | None = None,
    wall: float | None = None,
) -> Exception:
    """The `worker_adapters.WorkerError` that an HTTP error answer means for this engine.

    ``wall``: when it came, in seconds since 1970.
    """

_Sample: TypeAlias = tuple[str, dict[str, str], float, tuple[str, float] | None]

@final
class Metrics:
    """Every series of a process, or of a part of it; nothing is global.

    Give it to adapters (``metrics=``) and serve it: by `render`, or by `collector` in a registry of
    prometheus-client's. Counting takes no Python and no lock per token. docs/metrics.md has every
    name.

    ``clock`` is monotonic seconds, `time.monotonic` when unset: what ages of gauges are counted by.
    ``milliseconds`` and ``seconds`` say in which units the contract's two latencies are exported.
    ``max_series`` bounds the samples that all series make, ``budgets`` replaces the number of
    values that single labels may have. What is past a bound is counted as ``other``, and that it
    was in ``label_overflow_total``. Raises ValueError for a label there is not.
    """

    def __new__(
        cls,
        *,
        clock: Callable[[], float] | None = None,
        milliseconds: bool = True,
        seconds: bool = False,
        max_series: int = 20_000,
        budgets: dict[str, int] | None = None,
    ) -> Metrics: ...
    def replica(self, engine: str, pool_id: str, replica_id: str) -> ReplicaMetrics:
        """Return the handle on one replica's series; for the same names, on the same ones."""
    def rejected(self, engine: str, reason: str) -> None:
        """Count a task refused before a replica was chosen; ``reason`` is an error's code."""
    def orchestrator(self, name: str, **labels: str) -> OwnSeries:
        """Return a series of the orchestrator's own, which is exported from now on.

        Raises ValueError where ``name`` is none of those, or has other labels.
        """
    def render(self, *, openmetrics: bool = True) -> str:
        """Write everything out: as OpenMetrics with exemplars, or as Prometheus' text."""
    @staticmethod
    def content_type(*, openmetrics: bool = True) -> str:
        """Return the media type of what `render` writes."""
    def snapshot(self) -> list[tuple[str, str, str, list[_Sample]]]:
        """Read every series at one moment: name, kind, help and samples of each family.

        A sample is its suffix, its labels, its value and, if there is one, the trace id and the
        value of an exemplar.
        """
    def collector(self) -> MetricsCollector:
        """Return a collector for any registry of prometheus-client's."""
    @property
    def series(self) -> int:
        """How many samples the series make."""

@final
class ReplicaMetrics:
    """One replica's handle on its series. Any number of handles, in any thread, share them."""

    @property
    def engine(self) -> str: ...
    @property
    def pool_id(self) -> str: ...
    @property
    def replica_id(self) -> str: ...
    @property
    def engine_version(self) -> str:
        """The version that is counted for: ``unknown`` until it is set."""
    def set_engine_version(self, version: str, *, trtllm_version: str | None = None) -> None:
        """Say which build the engine is; that of another one is let go."""
    def task(self, priority: str, *, traceparent: str | None = None) -> TaskMetrics:
        """Return what one task is counted by; its latencies become exemplars of the trace."""
    def rejected(self, reason: str) -> None:
        """Count a task refused before anything was sent; ``reason`` is an error's code."""
    def retried(self, reason: str) -> None:
        """Count a request sent once more; ``reason`` is the code of the error before."""
    def set_breaker(self, state: str) -> None:
        """Say where the circuit breaker stands: ``closed``, ``open`` or ``half_open``."""
    def breaker_tripped(self) -> None:
        """Count that the circuit breaker opened."""
    def set_gauge(
        self, name: str, value: float | None, *, source: str, priority: str | None = None
    ) -> None:
        """Set a gauge of the engine's; None says that it is not known, and it is absent then.

        ``name`` is ``queue_depth``, ``requests_running``, ``kv_cache_usage_ratio``, ``slots`` or
        ``slots_free``; ``source`` names which of the engine's answers it comes from.
        """
    def gauges(self) -> dict[str, tuple[float | None, str, float]]:
        """Return the known gauges of the engine's: value, source and age in seconds.

        One that is of a single priority is called ``name:priority``.
        """
    def retire(self) -> None:
        """Let the series go: the replica is no more. One scrape sees them still."""

@final
class TaskMetrics:
    """What one task is counted by: that it started, and once how it ended.

    Its decoder tells how it ended once the engine has answered 200; before, whoever submits does.
    """

    def started(self) -> None:
        """Count that the task was handed to the engine; once, however often."""
    def give_reason(self, reason: str) -> None:
        """Say why the task will be cancelled, if it is; the first to say so is believed."""
    def refused(self, kind: str, phase: str, code: str) -> None:
        """Count the error that submit raised. Raises ValueError for words there are not."""
    def cancelled(self, reason: str) -> None:
        """Count a task cancelled, for the reason given before or else this one."""
    def stopped(self, confirmed: bool | None, seconds: float) -> None:
        """Count a cancel that ended it: what the engine said to that, and how long it took."""

@final
class OwnSeries:
    """A series that the orchestrator writes itself. A gauge is exported while this is kept."""

    def inc(self, more: int = 1) -> None:
        """Add to a counter."""
    def set(self, value: float | None) -> None:
        """Set a gauge; None says that it is not known."""
