"""The recipe for structlog on docs/logs.md, as it stands there."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.observe.lines import check
from tests.unit.tasks import PROMPT, task
from worker_adapters import LlamaCppAdapter, WorkerReset
from worker_adapters.observe.formatter import JsonHandler
from worker_adapters.observe.logs import LOGGER, Logs
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[3] / "docs" / "logs.md"
WITHIN = 20.0


def recipe() -> str:
    found = re.search(
        r"^## structlog$.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[1]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, as it was before when the test is over."""
    ours = logging.getLogger(LOGGER)
    handlers, level = list(ours.handlers), ours.level
    yield ours
    ours.handlers[:] = handlers
    ours.setLevel(level)


def parsed(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_the_recipe_says_what_our_own_handler_says(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    cooked, own = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", cooked)
    exec(compile(recipe(), str(PAGE), "exec"), {})
    monkeypatch.undo()
    logger.addHandler(JsonHandler(own))
    logs = Logs()
    async with (
        scripted_engine("llamacpp") as server,
        LlamaCppAdapter(server.url, pool_id="chat", logs=logs) as adapter,
    ):
        await (await adapter.submit(task(max_tokens=2))).collect()
        server.behave(error="status", status=500)
        await adapter.health()
        with pytest.raises(WorkerReset):
            await adapter.submit(task())
    assert logs.flush(WITHIN)
    logs.close()
    assert not logs.dropped
    lines = parsed(own)
    assert [line["action"] for line in lines] == ["submit", "start", "end", "submit", "error"]
    for mine, theirs in zip(lines, parsed(cooked), strict=True):
        check(mine)
        assert theirs.pop("timestamp").endswith("Z")
        assert theirs.pop("level") == mine["level"].lower()
        del mine["ts"], mine["level"], mine["logger"]
        assert theirs == mine
    assert PROMPT not in cooked.getvalue()
