"""Tasks sent through a `Transport`: the data plane wherever bodies are pulled."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

from worker_adapters._core import TokenEvent
from worker_adapters.errors import DeadlineUnmet, DecodeTimeout
from worker_adapters.transport import (
    MAX_ERROR_BYTES,
    ByteStream,
    CancelledInFlightError,
    Progress,
    Submission,
    Transport,
    TransportError,
    read_body,
)
from worker_adapters.transport._pulled import PulledStream

__all__ = ["PulledTransport"]

ERROR_BODY_SECONDS: Final = 2.0
"""How long the body of an error answer may take once its head is there."""


class PulledTransport:
    """Sends tasks through ``transport``, which stays its owner's to close."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def submit(self, submission: Submission) -> PulledStream:
        """Send a task and return its stream. See `StreamTransport.submit`."""
        decoder, clock = submission.decoder, submission.clock
        decoder.dispatched(clock())
        body = await self._head(submission)
        events = decoder.head(body.status, body.headers, clock())
        if body.status != 200:
            events += await self._error_body(body, submission)
            raise _error_of(events)
        return PulledStream(
            submission.task_id,
            decoder,
            body,
            events=events,
            clock=clock,
            on_terminal=submission.on_terminal,
            abort=submission.abort,
            narration=submission.narration,
        )

    async def aclose(self) -> None:
        """Do nothing: no connection is its own."""

    async def _head(self, submission: Submission) -> ByteStream:
        submission.call.progress = Progress()
        try:
            return await self._answered_head(submission)
        except (CancelledInFlightError, asyncio.CancelledError, DeadlineUnmet, DecodeTimeout):
            submission.given_up()
            raise

    async def _answered_head(self, submission: Submission) -> ByteStream:
        call, decoder, clock = submission.call, submission.decoder, submission.clock
        opening = self._transport.open(
            submission.request,
            call.progress,
            connect=call.timeouts.connect,
            tls=call.timeouts.tls,
        )
        try:
            body = await call.wait(opening, decoder.next_wakeup())
        except TransportError as error:
            events = decoder.fail(
                error.detail,
                error.phase,
                clock(),
                message=error.message,
                processed=error.processed,
            )
        except TimeoutError:
            phase, processed = call.progress.phase, call.progress.processed
            now = max(clock(), decoder.next_wakeup() or 0.0)
            if call.deadline_passed:
                events = decoder.fail("deadline", phase, now, processed=processed)
            elif phase == "write":
                events = decoder.fail("write_timeout", phase, now, processed=processed)
            elif call.progress.partial_head:
                events = decoder.fail("header_timeout", phase, now, processed=processed)
            else:
                events = decoder.tick(now)
        else:
            if not call.cancelled:
                return body
            # The head came in the same turn of the loop.
            body.abort()
            raise CancelledInFlightError
        raise _error_of(events)

    async def _error_body(self, body: ByteStream, submission: Submission) -> list[TokenEvent]:
        """Read what an error answer says, as far as it says it soon."""
        decoder, clock = submission.decoder, submission.clock
        data, complete = b"", False
        try:
            with contextlib.suppress(TimeoutError, TransportError):
                until = clock() + ERROR_BODY_SECONDS
                data, complete = await submission.call.wait(read_body(body, MAX_ERROR_BYTES), until)
        finally:
            await body.aclose()
        now = clock()
        return [*decoder.feed(data, now), *decoder.finish(now, complete)]


def _error_of(events: Iterable[TokenEvent]) -> Exception:
    """Return the error that ended a stream before anybody had it."""
    errors = (event.error for event in events)
    return next(error for error in errors if error is not None)
