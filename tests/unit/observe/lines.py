"""Lines as a program would see them: parsed, and held against the contract."""

from __future__ import annotations

import io
import json
import logging
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from worker_adapters.observe.formatter import JsonHandler
from worker_adapters.observe.logs import Logs

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "contract" / "logs.json").read_text(encoding="utf-8")
)
"""The log contract, for machines."""

TYPES: Final[dict[str, type]] = {"string": str, "integer": int, "boolean": bool}

OPAQUE: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}|\b(?=[0-9a-f]*[0-9])[0-9a-f]{6,}\b|[0-9a-f]{12,}", re.IGNORECASE
)
"""What nobody could read aloud."""


class Heard:
    """A logger of its own, whose lines come here."""

    def __init__(self, level: int = logging.DEBUG, **options: Any) -> None:
        self._stream = io.StringIO()
        self.handler = JsonHandler(self._stream)
        self.logger = logging.getLogger(f"worker_adapters.test.{uuid4().hex}")
        self.logger.setLevel(level)
        self.logger.addHandler(self.handler)
        self.logger.propagate = False
        self.logs = Logs(self.logger, **options)

    def lines(self) -> list[dict[str, Any]]:
        """Every line so far."""
        assert self.logs.flush()
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def actions(self) -> list[str]:
        """What every line so far is of."""
        return [line["action"] for line in self.lines()]


@contextmanager
def heard(level: int = logging.DEBUG, **options: Any) -> Iterator[Heard]:
    """Listen to a logger; afterwards every line is held against the contract."""
    ears = Heard(level, **options)
    try:
        yield ears
        for line in ears.lines():
            check(line)
    finally:
        ears.logs.close()
        ears.logger.removeHandler(ears.handler)


def check(line: dict[str, Any]) -> None:
    """Hold one line against the contract, exactly."""
    action = CONTRACT["actions"][line["action"]]
    of_a_task = CONTRACT["of_a_task"] if "task_id" in line else {}
    required = CONTRACT["always"] | of_a_task | action["fields"]
    optional = CONTRACT["where_known"] | action["optional"]
    if line["action"] == "retry":
        optional = optional | CONTRACT["of_a_task"]
    assert required.keys() <= line.keys(), line
    assert line.keys() <= required.keys() | optional.keys(), line
    for name, value in line.items():
        expected = (required | optional)[name]
        assert type(value) is TYPES[expected], (name, value)
    assert line["level"] == action["level"]
    assert line["actor"] == CONTRACT["actor"]
    assert line["target"] == f"{line['pool_id']}/{line['replica_id']}"
    check_human(line["human"])


def check_human(human: str) -> None:
    """A short sentence, without an id."""
    assert re.fullmatch(r"[A-Za-z][^\n]{8,158}\.", human), human
    assert OPAQUE.search(human) is None, human
