"""Who may register: bearer tokens, compared in constant time and shown as fingerprints."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from pydantic import SecretStr

__all__ = ["BAD_TOKEN", "MISSING_TOKEN", "AuthError", "BearerAuth", "identity_of"]

MISSING_TOKEN: Final = 40101
BAD_TOKEN: Final = 40102

_WORDS: Final = {MISSING_TOKEN: "MISSING_TOKEN", BAD_TOKEN: "BAD_TOKEN"}


class AuthError(Exception):
    """A request is not let in: answer 401 with `body`.

    Attributes:
        code: ``40101`` without a token, ``40102`` for a wrong one.
    """

    def __init__(self, code: int) -> None:
        super().__init__(_WORDS[code])
        self.code = code

    @property
    def body(self) -> dict[str, object]:
        """What the answer's body says."""
        return {"code": self.code, "message": _WORDS[self.code]}


def identity_of(token: str | SecretStr) -> str:
    """Return what a token is called: ``token:`` and the first 6 hex digits of its SHA-256."""
    return f"token:{_digest(token).hex()[:6]}"


class BearerAuth:
    """The tokens that are let in. No token shows in a repr.

    One token, or several. Raises ValueError without any, or for one that no header can carry: an
    empty one, or one with spaces around it; TypeError for what is no token.
    """

    # One that could not be made has a repr, too: tracebacks may show it.
    _known: tuple[tuple[bytes, str], ...] = ()

    def __init__(self, tokens: str | SecretStr | Iterable[str | SecretStr]) -> None:
        # A string is iterable, too: of tokens of one character each.
        several = (tokens,) if isinstance(tokens, (str, SecretStr)) else tuple(tokens)
        problem = _problem(several)
        if problem is not None:
            del tokens, several  # what prints local variables would show them
            raise problem
        self._known = tuple((_digest(token), identity_of(token)) for token in several)

    def __repr__(self) -> str:
        return f"BearerAuth({', '.join(identity for _, identity in self._known)})"

    def check(self, authorization: str | None) -> str:
        """Return the identity of whoever sends this ``Authorization`` header.

        Every token is compared whichever fits, by digest: the time it takes says nothing about
        one. Raises AuthError.
        """
        identity, code = self._identified(authorization)
        if identity is None:
            del authorization  # what prints local variables would show it
            raise AuthError(code)
        return identity

    def _identified(self, authorization: str | None) -> tuple[str | None, int]:
        """Return whose header it is, or nobody and why."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None, MISSING_TOKEN
        given = _digest(token.strip())
        fits = None
        for known, identity in self._known:
            if hmac.compare_digest(known, given):
                fits = identity
        return fits, BAD_TOKEN


def _problem(tokens: tuple[object, ...]) -> Exception | None:
    """Return what is wrong with tokens that are to be let in."""
    if not tokens:
        return ValueError("at least one token is needed")
    for token in tokens:
        if not isinstance(token, (str, SecretStr)):
            return TypeError("a token is a str or a SecretStr")
    plain = [_plain(token) for token in tokens if isinstance(token, (str, SecretStr))]
    if any(not token or token != token.strip() for token in plain):
        return ValueError("no token may be empty, or have spaces around it")
    return None


def _plain(token: str | SecretStr) -> str:
    return token.get_secret_value() if isinstance(token, SecretStr) else token


def _digest(token: str | SecretStr) -> bytes:
    return hashlib.sha256(_plain(token).encode("utf-8", "surrogatepass")).digest()
