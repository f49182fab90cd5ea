"""What an engine says of itself: asked for once by all who wait, and kept for a while."""

from abc import abstractmethod
from asyncio import AbstractEventLoop
from typing import ClassVar, Final, TypeAlias

from worker_adapters.capabilities import AdapterCapabilities
from worker_adapters.contract import ExpectedModel, Timeouts, WorkerHealth, WorkerIdentity
from worker_adapters.engines._call import Call, CancelledInFlightError, Shared
from worker_adapters.engines._calls import HttpCalls
from worker_adapters.errors import WorkerError, from_fields

__all__ = ["IdentifiedEngine"]

CAPABILITIES_SECONDS: Final = 30.0
"""How old what the engine told of itself may be, for capabilities and for a submit."""

FLAP_SECONDS: Final = 10.0
"""For how long after a good probe a single bad one is not believed."""

_NOT_TOLD: Final = frozenset(("not_found", "unsupported", "bad_json"))
"""How an engine answers that does not tell what it is."""

_FLEETING: Final = frozenset(("unary_timeout", "connect_timeout", "reset", "truncated"))
"""What can befall a probe of an engine that is well."""

_OUR_OWN: Final = frozenset(("saturated", "fd", "local"))
"""What is short on our side, and says nothing of the engine."""

_Told: TypeAlias = WorkerIdentity | WorkerError | None
"""What came of asking an engine what it is; None where it answers and does not tell."""


class IdentifiedEngine(HttpCalls):
    """An adapter that knows whether its engine is ready, what it is and what it can do."""

    health_path: ClassVar[str]

    _expect: ExpectedModel | None

    def __init__(self) -> None:
        self._last_identity: WorkerIdentity | None = None
        self._last_identity_at = 0.0
        self._asking: dict[tuple[AbstractEventLoop, Timeouts], Shared[_Told]] = {}
        """Who is being asked for the identity right now, for all submits that wait for it."""
        self._ready_at: float | None = None
        self._capabilities: AdapterCapabilities | None = None
        self._capabilities_at = 0.0

    @property
    def _identity(self) -> WorkerIdentity | None:
        """What the engine last said it is; None where that is too old to go by."""
        if self._clock() - self._last_identity_at >= CAPABILITIES_SECONDS:
            return None
        return self._last_identity

    @_identity.setter
    def _identity(self, identity: WorkerIdentity | None) -> None:
        self._last_identity, self._last_identity_at = identity, self._clock()

    @abstractmethod
    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        """Ask for what a submit needs to know of the engine, in one request."""

    async def _probe_health(self, call: Call) -> None:
        """Return when the engine is ready. Raises WorkerError, saying why, when it is not."""
        await self._get(self.health_path, call)

    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Ask whether the engine is ready. See `WorkerAdapter.health`.

        A probe that times out or is cut off is made once more when the one before it, less than
        `FLAP_SECONDS` ago, found the engine ready. All that is asked takes ``timeouts.unary``
        together, no longer.
        """
        call = self._call(timeouts)
        call.until = call.unary_end()
        call.repeats = False
        ready_at, self._ready_at = self._ready_at, None
        was_ready = ready_at is not None and self._clock() - ready_at < FLAP_SECONDS
        try:
            if was_ready:
                await self._probe_steadily(call)
            else:
                await self._probe_health(call)
            if self._expect is not None:
                identity = await self._told_identity(call)
                if identity is not None and self._expect.differs_from(identity):
                    return WorkerHealth(live=True, ready=False, reason="wrong_model")
        except WorkerError as error:
            live = call.answered or error.status is not None
            return WorkerHealth(live=live, ready=False, reason=error.detail)
        except Exception:  # noqa: BLE001 - an injected client may raise whatever it likes
            return WorkerHealth(live=False, ready=False, reason="internal")
        self._ready_at = self._clock()
        return WorkerHealth(live=True, ready=True)

    async def _probe_steadily(self, call: Call) -> None:
        """Probe an engine that was ready; a probe that goes astray gets a second one.

        Raises WorkerError. The first takes half of the time there is, so that it leaves some.
        """
        until, unary = call.until, call.timeouts.unary
        if unary is not None:
            call.until = self._clock() + unary / 2
        try:
            await self._probe_health(call)
        except WorkerError as error:
            if error.detail not in _FLEETING:
                raise
        else:
            return
        finally:
            call.until = until
        call.answered = False
        await self._probe_health(call)

    async def capabilities(self, *, timeouts: Timeouts | None = None) -> AdapterCapabilities:
        """Tell what this adapter can do, from answers at most `CAPABILITIES_SECONDS` old.

        See `WorkerAdapter.capabilities`. An engine that does not tell what it is, is described by
        what its adapter knows.
        """
        age = self._clock() - self._capabilities_at
        described = self._capabilities
        if described is None or age >= CAPABILITIES_SECONDS:
            identity = await self._told_identity(self._call(timeouts))
            described = self._describe(identity, await self.props(timeouts=timeouts))
            self._capabilities, self._capabilities_at, age = described, self._clock(), 0.0
        return described.model_copy(update={"age_ms": round(age * 1000)})

    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        """Ask the engine which build it is. See `WorkerAdapter.engine_version`."""
        return (await self._refresh_identity(self._call(timeouts))).engine_version

    async def identity(self, *, timeouts: Timeouts | None = None) -> WorkerIdentity:
        """Ask the engine what it is and what it has loaded. See `WorkerAdapter.identity`."""
        return await self._refresh_identity(self._call(timeouts))

    async def _known_identity(self, call: Call) -> WorkerIdentity | None:
        """Return the engine's identity, at most `CAPABILITIES_SECONDS` old.

        None where the engine will not tell. Whoever asks meanwhile waits for the same answer.
        """
        if (known := self._identity) is not None:
            return known
        if call.cancelled:
            raise CancelledInFlightError
        asking = self._ask_for_all(call)
        try:
            told = await call.wait(asking.result(call.deadline), call.deadline)
        except TimeoutError:
            phase = asking.call.progress.phase
            raise self._error(call, "deadline", phase=phase, processed="no") from None
        if isinstance(told, WorkerError):
            # Whatever befell the question, the task itself has not been sent.
            own = {"correlation_id": call.correlation_id, "processed": "no"}
            raise from_fields({**told.fields(), **own})
        return told

    def _ask_for_all(self, call: Call) -> "Shared[_Told]":
        """Ask the engine what it is, unless somebody with the same patience is doing so."""
        key = call.loop, call.timeouts
        asking = self._asking.get(key)
        if asking is None or asking.is_over:
            for other in [other for other, shared in self._asking.items() if shared.is_over]:
                del self._asking[other]
            own = self._call(call.timeouts, call.correlation_id)
            asking = self._asking[key] = Shared(self._what_is_told(own), own)
        return asking

    async def _what_is_told(self, call: Call) -> _Told:
        try:
            return await self._told_identity(call)
        except WorkerError as error:
            return error

    async def _told_identity(self, call: Call) -> WorkerIdentity | None:
        """Ask the engine what it is; None where it answers and does not tell."""
        try:
            return await self._refresh_identity(call)
        except WorkerError as error:
            if error.detail not in _NOT_TOLD:
                raise
            self._identity = None
            return None

    async def _refresh_identity(self, call: Call) -> WorkerIdentity:
        try:
            identity = await self._ask_identity(call)
        except WorkerError as error:
            self._forget_identity(error)
            raise
        self._identity = identity
        return identity

    def _forget_identity(self, error: WorkerError) -> None:
        """Whatever answers after a reset or an outage may be another build or another model."""
        if error.kind in {"WorkerReset", "PoolUnavailable"} and error.detail not in _OUR_OWN:
            self._identity = self._capabilities = None
