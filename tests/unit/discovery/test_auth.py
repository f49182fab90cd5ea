"""Who is let in, and what is said of it."""

from __future__ import annotations

import hashlib
import hmac
import inspect
from typing import Any

import pytest
from pydantic import SecretStr

from worker_adapters.discovery import AuthError, BearerAuth, auth, identity_of

TOKEN = "the-token-of-workers"


def test_an_identity_is_a_fingerprint() -> None:
    digits = hashlib.sha256(TOKEN.encode()).hexdigest()[:6]
    assert identity_of(TOKEN) == identity_of(SecretStr(TOKEN)) == f"token:{digits}"


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN} "])
def test_a_token_that_fits(header: str) -> None:
    assert BearerAuth(["another", TOKEN]).check(header) == identity_of(TOKEN)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN])
def test_no_token(header: str | None) -> None:
    with pytest.raises(AuthError) as caught:
        BearerAuth([TOKEN]).check(header)
    assert caught.value.body == {"code": 40101, "message": "MISSING_TOKEN"}


@pytest.mark.parametrize("token", [TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\udcff", "ü"])
def test_a_wrong_token(token: str) -> None:
    with pytest.raises(AuthError) as caught:
        BearerAuth([TOKEN]).check(f"Bearer {token}")
    assert caught.value.body == {"code": 40102, "message": "BAD_TOKEN"}


def test_nothing_shows_a_token() -> None:
    made = BearerAuth([TOKEN])
    assert TOKEN not in repr(made)
    assert identity_of(TOKEN) in repr(made)


@pytest.mark.parametrize("token", [TOKEN, SecretStr(TOKEN)])
def test_one_token_is_one_and_not_its_characters(token: str | SecretStr) -> None:
    auth = BearerAuth(token)
    assert auth.check(f"Bearer {TOKEN}") == identity_of(TOKEN)
    for character in set(TOKEN):
        with pytest.raises(AuthError, match="BAD_TOKEN"):
            auth.check(f"Bearer {character}")


@pytest.mark.parametrize(
    "tokens", ["", SecretStr(""), [], [""], ["", TOKEN], [TOKEN, SecretStr("")], [f"{TOKEN}\n"]]
)
def test_tokens_that_let_nobody_in(tokens: Any) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        BearerAuth(tokens)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("tokens", [TOKEN.encode(), [TOKEN.encode()], [TOKEN, None]])
def test_what_is_no_token(tokens: Any) -> None:
    with pytest.raises(TypeError) as caught:
        BearerAuth(tokens)
    assert TOKEN not in str(caught.value)


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def noting(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(auth, "hmac", type("hmac", (), {"compare_digest": staticmethod(noting)}))
    made = BearerAuth([TOKEN, "another", "a-third"])
    made.check(f"Bearer {TOKEN}")
    with pytest.raises(AuthError):
        made.check("Bearer x")
    # Digests of one length, all three each time, whichever fits.
    assert compared == [(32, 32)] * 6
    assert "==" not in inspect.getsource(BearerAuth.check)
