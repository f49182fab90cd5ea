"""Exchanges with an engine behind HTTP that are over with one answer, or with an error."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from worker_adapters._core import Redactor, classify_response, make_error
from worker_adapters._trio import Anywhere
from worker_adapters.adapter import WorkerAdapter
from worker_adapters.contract import SubmitContext, Timeouts
from worker_adapters.engines._call import Call, CancelledInFlightError
from worker_adapters.engines._credentials import Credentials
from worker_adapters.engines._json import read_json
from worker_adapters.errors import WorkerError
from worker_adapters.observe.narration import Narrator
from worker_adapters.retry import Repeat, Retries
from worker_adapters.transport import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    ByteStream,
    Headers,
    Progress,
    Request,
    Response,
    Transport,
    TransportError,
    flaw_of,
    read_body,
)

__all__ = ["HttpCalls"]

_T = TypeVar("_T")


class HttpCalls(Anywhere, WorkerAdapter):
    """An adapter's way to ask its engine something: bounded, with its key, errors classified."""

    _clock: Callable[[], float]
    _wall_clock: Callable[[], float]
    _retries: Retries
    _timeouts: Timeouts
    _credentials: Credentials
    _narrator: Narrator
    _transport: Transport
    _closed: bool

    def _call(
        self,
        timeouts: Timeouts | None,
        correlation_id: str | None = None,
        budget: float | None = None,
    ) -> Call:
        return Call(
            clock=self._clock,
            timeouts=self._timeouts if timeouts is None else timeouts,
            correlation_id=str(uuid4()) if correlation_id is None else correlation_id,
            deadline=None if budget is None else self._clock() + budget,
        )

    async def _get(self, path: str, call: Call) -> bytes:
        """Return the body of a 200. Raises WorkerError."""
        return await self._exchange(Request("GET", path, self._headers(call)), call)

    async def _get_json(self, path: str, call: Call, read: Callable[[Any], _T]) -> _T:
        """Return what ``read`` makes of the JSON at ``path``. Raises WorkerError."""
        return self._parsed(await self._get(path, call), call, read)

    async def _exchange(
        self, request: Request, call: Call, repeat: Repeat = Repeat.HARMLESS
    ) -> bytes:
        """Return the body of the 200 that answers ``request``, sent again where that may help.

        Raises WorkerError.
        """
        until = call.unary_end()
        attempts = self._retries.begin(None if call.repeats else 1)
        while True:
            try:
                return await self._once(request, call, until)
            except WorkerError as error:
                now = self._clock()
                pause = attempts.pause_after(error, repeat, now, call.pause_end(until))
                if pause is None:
                    raise
                self._note_retry(call, error, attempts.made, pause)
            await call.wait(asyncio.sleep(pause), None)

    def _note_retry(self, call: Call, error: WorkerError, attempt: int, pause: float) -> None:
        """Tell that what failed so is sent once more after that pause, in seconds."""
        if self.metrics is not None:
            self.metrics.retried(error.code)
        if call.narration is not None:
            call.narration.retried(error, attempt, pause)
        else:
            self._narrator.retry(error, attempt, pause)

    async def _once(self, request: Request, call: Call, until: float | None) -> bytes:
        if self._closed:
            raise self._error(call, "closed", "the adapter has been closed")
        self._require_sendable(request, call)
        call.progress = Progress()
        try:
            response = await call.wait(self._answer(request, call), until)
        except TransportError as error:
            call.answered = False
            raise self._failed(error, call) from None
        except TimeoutError:
            detail = "deadline" if call.deadline_passed else "unary_timeout"
            progress = call.progress
            raise self._error(
                call, detail, phase=progress.phase, processed=progress.processed
            ) from None
        if call.cancelled:
            raise CancelledInFlightError
        call.answered = True
        if response.status != 200:
            raise self._classified(response, call)
        return response.body

    def _require_sendable(self, request: Request, call: Call) -> None:
        if flaw := flaw_of(request):
            raise self._error(call, "invalid_request", flaw, processed="no")

    def _failed(self, error: TransportError, call: Call) -> Exception:
        return self._error(
            call, error.detail, error.message, phase=error.phase, processed=error.processed
        )

    def _classified(self, response: Response, call: Call) -> Exception:
        return classify_response(
            self.engine,
            response.status,
            response.headers,
            response.body[:MAX_ERROR_BYTES],
            rules=self.rules,
            redactor=self._redactor(call),
            correlation_id=call.correlation_id,
            wall=self._wall_clock(),
        )

    async def _answer(self, request: Request, call: Call) -> Response:
        body = await self._open(request, call)
        try:
            limit = MAX_ANSWER_BYTES if body.status == 200 else MAX_ERROR_BYTES
            data, complete = await read_body(body, limit)
        finally:
            await body.aclose()
        if not complete and body.status == 200:
            raise TransportError("body_too_large", "stream", "yes")
        return Response(body.status, body.headers, data)

    async def _open(self, request: Request, call: Call) -> ByteStream:
        timeouts = call.timeouts
        return await self._transport.open(
            request, call.progress, connect=timeouts.connect, tls=timeouts.tls
        )

    def _parsed(self, body: bytes, call: Call, read: Callable[[Any], _T]) -> _T:
        try:
            return read(read_json(body))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            # What went wrong in detail would quote the answer, which may quote a prompt.
            del body
        raise self._error(call, "bad_json", phase="stream", processed="yes")

    def _headers(self, call: Call, context: SubmitContext | None = None) -> Headers:
        failure = ""
        credentials: Headers = ()
        try:
            credentials = self._credentials.headers()
        except Exception as error:  # noqa: BLE001 - a function of the caller's may raise anything
            failure = type(error).__name__
        if failure:
            # Neither its text nor the exception itself: both may hold what was read as the key.
            raise self._error(call, "unauthorized", f"the api_key cannot be had ({failure})")
        headers = [
            *credentials,
            (b"Content-Type", b"application/json"),
            (b"X-Correlation-Id", call.correlation_id.encode()),
        ]
        if context is not None and context.traceparent is not None:
            headers.append((b"traceparent", context.traceparent.encode()))
            if context.tracestate is not None:
                headers.append((b"tracestate", context.tracestate.encode()))
        return headers

    def _redactor(self, call: Call) -> Redactor:
        """Return what keeps the keys, and the texts of the call's task, out of errors."""
        redactor = self._credentials.redactor
        return redactor.with_private_texts(call.private) if call.private else redactor

    def _error(
        self,
        call: Call,
        detail: str,
        message: str = "",
        *,
        phase: str = "validate",
        processed: str | None = None,
    ) -> Exception:
        return make_error(
            self.engine,
            detail,
            phase,
            message=message,
            redactor=self._redactor(call),
            correlation_id=call.correlation_id,
            processed=processed,
        )
