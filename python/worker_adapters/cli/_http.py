"""A recorded HTTP response taken apart, as it comes in."""

from __future__ import annotations

from typing import NamedTuple

import h11

__all__ = ["Body", "Head", "HttpResponse", "NotHttpError"]


class NotHttpError(ValueError):
    """The bytes before the body are no HTTP/1 response head."""


class Head(NamedTuple):
    """The response head: status and raw headers in order."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Body(NamedTuple):
    """A piece of the body, transfer coding removed."""

    data: bytes


class HttpResponse:
    """Takes the bytes of one HTTP/1 response in any pieces, gives head and body.

    Interim answers (100 Continue) are skipped. What follows the response is left alone and
    counted in ``trailing``.
    """

    def __init__(self) -> None:
        # Of the request, only whether it was HEAD or CONNECT matters for the response's framing.
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self._connection.send(h11.Request(method="GET", target="/", headers=[("Host", "-")]))
        self._connection.send(h11.EndOfMessage())
        self._head_seen = False
        self._over = False
        self.complete = False
        """Whether the framing says that the body is whole."""
        self.trailing = 0

    def feed(self, data: bytes) -> list[Head | Body]:
        """What these bytes completed; ``b""`` is the end of the input.

        Raises NotHttpError where no head can be read.
        """
        parts: list[Head | Body] = []
        if self._over:
            self.trailing += len(data)
            return parts
        try:
            self._connection.receive_data(data)
            while not self._over:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    self._head_seen = True
                    parts.append(Head(event.status_code, event.headers.raw_items()))
                elif isinstance(event, h11.Data):
                    parts.append(Body(bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    self._over = self.complete = True
                    self.trailing += len(self._connection.trailing_data[0])
                elif not isinstance(event, h11.InformationalResponse):
                    break
        except h11.RemoteProtocolError as error:
            if not self._head_seen:
                reason = str(error) if data else "it ends before its head does"
                raise NotHttpError(reason) from error
            self._over = True
        return parts
