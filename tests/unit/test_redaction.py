"""Redaction as Python sees it: every vector, errors included."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from worker_adapters import Redactor
from worker_adapters._core import classify_response, make_error

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS = Path(__file__).parent.parent / "vectors" / "secrets.jsonl"
ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in VECTORS.read_text(encoding="ascii").splitlines()
]


def redactor(row: dict[str, Any]) -> Redactor:
    known = row.get("known_secrets", [])
    if any(len(secret) < 6 for secret in known):
        with pytest.raises(ValueError, match="fewer than 6 characters"):
            Redactor(known)
        return Redactor()
    return Redactor(known)


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_vector(row: dict[str, Any]) -> None:
    made = redactor(row)
    for text in (row["text"], *row.get("records", ())):
        shown = made.redact(text)
        assert [secret for secret in row["must_not_contain"] if secret in shown] == []
        assert [kept for kept in row.get("must_contain", ()) if kept not in shown] == []
        assert made.redact(shown) == shown
        if row["name"].startswith("keep_"):
            assert shown == text


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_vector_in_the_words_of_an_engine(row: dict[str, Any]) -> None:
    made = redactor(row)
    errors = [
        make_error("llamacpp", "connect", "connect", message=row["text"], redactor=made),
        classify_response("llamacpp", 400, (), row["text"].encode(), redactor=made),
        classify_response(
            "llamacpp",
            401,
            (),
            json.dumps({"error": {"message": row["text"], "type": "auth"}}).encode(),
            redactor=made,
        ),
    ]
    for error in errors:
        for shown in (str(error), repr(error)):
            assert [secret for secret in row["must_not_contain"] if secret in shown] == []


def test_without_a_redactor_errors_are_redacted_too() -> None:
    error = make_error("llamacpp", "connect", "connect", message="at http://u:hunter2@h")
    assert "hunter2" not in str(error)
    assert "at http://u:****" in str(error)


def test_what_is_cut_off_in_an_error_is_cut_off_as_a_secret() -> None:
    known = "hunter2-hunter2-hunter2-hunter2"
    for length in range(480, 520):
        message = "x" * (length - 1) + " " + known
        error = make_error(
            "llamacpp", "connect", "connect", message=message, redactor=Redactor([known])
        )
        assert "hunter2" not in str(error)


def test_a_fingerprint_names_the_secret() -> None:
    known = "correct horse"
    shown = Redactor([known]).redact(f"no: {known}")
    assert shown == "no: ****" + hashlib.sha256(known.encode()).hexdigest()[:6]


def test_any_text_can_be_redacted() -> None:
    shown = Redactor().redact("a \ud800 token=hunter2")
    assert shown.startswith("a \ufffd")
    assert "hunter2" not in shown
    with pytest.raises(TypeError):
        Redactor().redact(b"bytes")  # type: ignore[arg-type]


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_knows_secrets_is_not_handed_on(duplicate: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"^cannot pickle .*Redactor"):
        duplicate(Redactor(["hunter22-hunter22"]))


def test_more_secrets() -> None:
    first = Redactor(["hunter2"])
    more = first.with_secrets(["correct horse"])
    assert "horse" in first.redact("hunter2, correct horse")
    shown = more.redact("hunter2, correct horse")
    assert "hunter2" not in shown
    assert "horse" not in shown
    assert repr(more) == "Redactor { secrets: 2, .. }"
