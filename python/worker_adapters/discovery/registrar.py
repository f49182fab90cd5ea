"""The handshake: replicas registered with an orchestrator, again after it has restarted."""

import asyncio
import contextlib
import hmac
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import SecretStr

from worker_adapters._core import EgressPolicy
from worker_adapters._secret import SecretBytes
from worker_adapters.discovery.auth import BAD_TOKEN, MISSING_TOKEN, identity_of
from worker_adapters.discovery.readiness import ReadinessRecord
from worker_adapters.engines._credentials import ApiKey, Credentials
from worker_adapters.retry import Retries, RetryPolicy
from worker_adapters.tls import TlsOptions
from worker_adapters.transport import (
    MAX_ERROR_BYTES,
    Headers,
    Progress,
    Request,
    TransportError,
    read_body,
    validate_base_url,
)
from worker_adapters.transport._httpx import HttpxTransport
from worker_adapters.transport._tls import TlsSetup

__all__ = ["Registrar", "Registration", "RegistrationError"]

_LOGGER: Final = logging.getLogger("worker_adapters")

REGISTER_PATH: Final = "/v1/workers/register"

BACKOFF: Final = RetryPolicy(base=0.5, cap=30.0)
"""The pauses between attempts: drawn evenly from 0 to ``min(cap, base * factor**n)``."""

INTERVAL_SECONDS: Final = 5.0
CALL_SECONDS: Final = 10.0
RECORDS_SECONDS: Final = 30.0
"""How long the records of now may be waited for."""

AT_ONCE: Final = 8
"""How many replicas are registered, or have their records pushed, at a time."""

_UNKNOWN: Final = frozenset((401, 404, 410))
"""How an orchestrator answers that does not know the worker, as after a restart."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A replica is registered."""

    pool_id: str
    replica_id: str
    identity: str
    """What the orchestrator calls the token: ``token:`` and six digits of its fingerprint."""


class RegistrationError(Exception):
    """A replica could not be registered, or its record not be pushed. Holds no token.

    Attributes:
        detail: A stable word: ``missing_token``, ``bad_token``, ``identity``, ``mismatch``,
            ``bad_answer``, ``status``, ``timeout``, ``token`` where none can be had, ``internal``
            for what nobody has thought of, or one of the transport's, such as ``connect``.
        status: The HTTP status, where there was one.
        code: The orchestrator's code, such as 40102, where it gave one.
    """

    def __init__(self, detail: str, *, status: int | None = None, code: int | None = None) -> None:
        super().__init__(detail if status is None else f"{detail} (status {status})")
        self.detail = detail
        self.status = status
        self.code = code


@dataclass(slots=True)
class _Worker:
    """How far one replica is."""

    registration: Registration | None = None
    failures: int = 0
    due: float = 0.0
    error: RegistrationError | None = field(default=None, repr=False)


class Registrar:
    """Registers a host's replicas with an orchestrator and, if it is told where, pushes records.

    ``run`` goes on until it is cancelled; ``register`` and ``push`` are single steps of it. After
    a failure it waits, with full jitter, ever longer. An orchestrator that no longer knows a
    replica, because it has restarted, has it registered again at once. Where there are no records
    to be had, be it for an exception or for their taking 30 seconds, that is logged and waited out.

    Args:
        base_url: Of the orchestrator, or of the pool manager.
        token: Sent as ``Authorization: Bearer``; as an adapter's ``api_key``.
        records: What returns the records of now: ``readiness.records``.
        push_path: Where records are pushed, one ``POST`` each; they are not when unset, and may be
            pulled.
        interval: Seconds between two rounds.
        backoff: Its ``base``, ``factor`` and ``cap`` say how long is waited after failures.
        egress: What may be connected to; scheme, host and port of the base URL when unset.
        clock: Monotonic seconds.
        rng: Draws the pauses.
    """

    # One that could not be made has a repr, too: tracebacks may show it.
    base_url = ""

    def __init__(
        self,
        base_url: str,
        *,
        token: ApiKey,
        records: Callable[[], Awaitable[Iterable[ReadinessRecord]]],
        push_path: str | None = None,
        interval: float = INTERVAL_SECONDS,
        backoff: RetryPolicy = BACKOFF,
        egress: EgressPolicy | None = None,
        tls: TlsOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._workers: dict[tuple[str, str], _Worker] = {}
        # What prints local variables would show it plain.
        token = SecretStr(token) if isinstance(token, str) else token
        self._credentials = Credentials(token)
        if not 0 < interval <= 3600:
            raise ValueError(f"interval must be above 0 and up to 3600 seconds, not {interval}")
        self.base_url = validate_base_url(base_url)
        if push_path is not None and not re.fullmatch(r"/[!-~]*", push_path):
            raise ValueError("push_path must be a path, printable ASCII without spaces")
        context = None if tls is None else TlsSetup.of(tls).context
        self._transport = HttpxTransport(self.base_url, egress=egress, ssl_context=context)
        self._records = records
        self._push_path = push_path
        self._interval = interval
        drawn = random.SystemRandom() if rng is None else rng
        self._backoff = Retries(backoff, drawn.uniform)
        self._clock = clock
        self._without_records = 0
        """How many rounds in a row had no records."""
        self._at_once = asyncio.Semaphore(AT_ONCE)

    def __repr__(self) -> str:
        return f"Registrar({self.base_url!r}, {len(self.registered)} registered)"

    @property
    def registered(self) -> tuple[Registration, ...]:
        """Which replicas are registered, as far as is known."""
        found = (worker.registration for worker in self._workers.values())
        return tuple(one for one in found if one is not None)

    @property
    def errors(self) -> dict[tuple[str, str], RegistrationError]:
        """What came in the way, by pool and replica, of those that are not registered now."""
        return {
            key: worker.error for key, worker in self._workers.items() if worker.error is not None
        }

    async def run(self) -> None:
        """Register, and push records, until cancelled."""
        while True:
            due = await self.round()
            await asyncio.sleep(max(0.0, due - self._clock()))

    async def round(self) -> float:
        """Do what is due now; return the instant of the clock at which something is next."""
        records = await self._records_of_now()
        if records is None:
            self._without_records += 1
            return self._clock() + self._backoff.pause(min(self._without_records, 64))
        self._without_records = 0
        for gone in self._workers.keys() - records.keys():
            del self._workers[gone]
        for key in records:
            self._workers.setdefault(key, _Worker())
        await asyncio.gather(*(self._turn(self._workers[key], records[key]) for key in records))
        soonest = self._clock() + self._interval
        return min((worker.due for worker in self._workers.values()), default=soonest)

    async def register(self, pool_id: str, replica_id: str) -> Registration:
        """Register one replica. Raises RegistrationError."""
        headers = self._authorization()
        body = {"pool_id": pool_id, "replica_id": replica_id}
        # No variable here, nor below, holds the answer when it raises: it may quote the token.
        wanted = Registration(pool_id, replica_id, _identity(headers))
        problem = _mismatch(await self._post(REGISTER_PATH, body, headers), wanted)
        if problem is not None:
            raise RegistrationError(problem, status=200)
        return wanted

    async def push(self, record: ReadinessRecord) -> None:
        """Push one record. Raises RegistrationError, and ValueError where there is no path."""
        if self._push_path is None:
            raise ValueError("this registrar has no push_path")
        body = record.model_dump(mode="json")
        await self._post(self._push_path, body, self._authorization())

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self._transport.aclose()

    async def _records_of_now(self) -> dict[tuple[str, str], ReadinessRecord] | None:
        try:
            async with asyncio.timeout(RECORDS_SECONDS):
                return {(one.pool_id, one.replica_id): one for one in await self._records()}
        except Exception as error:  # noqa: BLE001 - a function of the caller's may raise anything
            if not self._without_records:
                _LOGGER.warning("no records to register: %s", type(error).__name__)
        return None

    async def _turn(self, worker: _Worker, record: ReadinessRecord) -> None:
        now = self._clock()
        if worker.due > now:
            return
        async with self._at_once:
            error = None
            try:
                await self._told(worker, record)
            except RegistrationError as known:
                error = known
            except Exception:  # noqa: BLE001 - nothing ends the rounds of all the others
                error = RegistrationError("internal")
            worker.error = error
            if error is not None:
                worker.due = self._clock() + self._backoff.pause(min(worker.failures, 64))
                worker.failures += 1
            else:
                worker.failures = 0
                worker.due = self._clock() + self._interval

    async def _told(self, worker: _Worker, record: ReadinessRecord) -> None:
        key = (record.pool_id, record.replica_id)
        if worker.registration is not None and self._push_path is not None:
            try:
                await self.push(record)
            except RegistrationError as error:
                if error.status not in _UNKNOWN:
                    raise
                worker.registration = None
            else:
                return
        elif worker.registration is not None:
            # Without a push nothing shows that the orchestrator has forgotten: it is told again.
            worker.registration = await self._again(worker, key)
            return
        worker.registration = await self.register(*key)
        if self._push_path is not None:
            await self.push(record)

    async def _again(self, worker: _Worker, key: tuple[str, str]) -> Registration:
        try:
            return await self.register(*key)
        except RegistrationError:
            worker.registration = None
            raise

    def _authorization(self) -> Headers:
        """Return the header with the token of now. Raises RegistrationError."""
        with contextlib.suppress(Exception):  # a function of the caller's may raise anything
            return self._credentials.headers()
        raise RegistrationError("token")

    async def _post(self, path: str, body: dict[str, Any], headers: Headers) -> Any:
        """Return the JSON of a 2xx. Raises RegistrationError."""
        status, answer = await self._answer(path, body, headers)
        if 200 <= status < 300:
            return answer
        code = answer.get("code") if isinstance(answer, dict) else None
        del answer
        known = code if isinstance(code, int) and not isinstance(code, bool) else None
        del code
        if status == 401 and known in {MISSING_TOKEN, BAD_TOKEN}:
            detail = "missing_token" if known == MISSING_TOKEN else "bad_token"
            raise RegistrationError(detail, status=401, code=known)
        raise RegistrationError("status", status=status, code=known)

    async def _answer(
        self, path: str, body: dict[str, Any], authorization: Headers
    ) -> tuple[int, Any]:
        """Return the status and what the body says as JSON, None where it is none."""
        headers = (*authorization, (b"Content-Type", b"application/json"))
        request = Request("POST", path, headers, SecretBytes(json.dumps(body).encode()))
        detail: str
        try:
            async with asyncio.timeout(CALL_SECONDS):
                response = await self._transport.open(request, Progress(), connect=5.0, tls=5.0)
                try:
                    data, _ = await read_body(response, MAX_ERROR_BYTES)
                finally:
                    await response.aclose()
                return response.status, _parsed(data)
        except TransportError as error:
            detail = error.detail
        except TimeoutError:
            detail = "timeout"
        raise RegistrationError(detail)


def _identity(authorization: Headers) -> str:
    header = next(value for _, value in authorization)
    return identity_of(header.removeprefix(b"Bearer ").decode("ascii"))


def _mismatch(answer: Any, wanted: Registration) -> str | None:
    """Return in a word what is wrong with the answer to a registration."""
    match answer:
        case {"ok": True, "identity": str(identity), "pool_id": pool, "replica_id": replica}:
            pass
        case _:
            return "bad_answer"
    if (pool, replica) != (wanted.pool_id, wanted.replica_id):
        return "mismatch"
    # Somebody who calls our token otherwise has not seen it: the one that was sent, whatever is
    # the token by now.
    told = identity.encode("utf-8", "surrogatepass")
    return None if hmac.compare_digest(told, wanted.identity.encode()) else "identity"


def _parsed(data: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)
    return None
