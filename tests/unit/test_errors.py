"""The exception tree: complete, picklable, and built from the core's own fields."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from worker_adapters import _core, errors
from worker_adapters.errors import WorkerError, from_fields

FIELDS: dict[str, Any] = {
    "code": "WORKER_RESET",
    "detail": "truncated",
    "message": "the stream was cut off",
    "retriable": True,
    "retry_after_ms": 250,
    "phase": "stream",
    "status": 200,
    "processed": "yes",
    "tokens_emitted": 7,
    "engine": "llamacpp",
    "correlation_id": "c-1",
}


@pytest.mark.parametrize("kind", _core.error_kinds())
def test_every_kind_of_the_core_has_a_class(kind: str) -> None:
    error = from_fields({"kind": kind, **FIELDS})
    assert error.kind == kind
    assert type(error) is not WorkerError
    assert isinstance(error, WorkerError)
    assert error.fields() == {"kind": kind, **FIELDS}
    assert str(error) == FIELDS["message"]


@pytest.mark.parametrize("kind", _core.error_kinds())
def test_an_error_survives_pickling_and_copying(kind: str) -> None:
    error = from_fields({"kind": kind, **FIELDS})
    error.add_note("seen twice")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert twin.fields() == error.fields()
        assert twin.args == error.args
        assert twin.__notes__ == ["seen twice"]


def test_the_tree_has_no_class_without_a_kind_of_the_core() -> None:
    classes = {cls.kind for cls in WorkerError.__subclasses__()}
    assert classes == set(_core.error_kinds())


@pytest.mark.parametrize("cls", WorkerError.__subclasses__())
def test_each_class_has_a_code_of_the_core_by_default(cls: type[WorkerError]) -> None:
    error = cls(message="m", detail="internal")
    assert error.code in _core.error_codes()
    assert error.phase in _core.error_phases()
    assert error.detail in _core.error_details()


@pytest.mark.parametrize("detail", _core.error_details())
def test_every_word_of_the_core_makes_an_error(detail: str) -> None:
    error = _core.make_error("llamacpp", detail, "head", message="m", correlation_id="c-1")
    assert isinstance(error, WorkerError)
    assert error.detail == detail
    assert error.code in _core.error_codes()
    assert error.engine == "llamacpp"
    assert error.correlation_id == "c-1"
    assert error.processed in {"no", "unknown", "yes"}


def test_the_docstring_draws_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        if name != "from_fields":
            assert name in errors.__doc__, name


@pytest.mark.parametrize("kind", ["Worker", "", None, 7])
def test_an_unknown_kind_is_refused(kind: object) -> None:
    with pytest.raises(ValueError, match="unknown error kind"):
        from_fields({"kind": kind, **FIELDS})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError):
        from_fields({"kind": "Internal", **FIELDS, "colour": "red"})


def test_the_repr_tells_the_words_first() -> None:
    error = from_fields({"kind": "WorkerReset", **FIELDS})
    assert repr(error) == (
        "WorkerReset(code='WORKER_RESET', detail='truncated', phase='stream', status=200, "
        "message='the stream was cut off')"
    )
