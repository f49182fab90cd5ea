"""What the host itself logs."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.unit.host.scripted import QUIET, Scripted, failed, task
from tests.unit.virtual_time import run
from worker_adapters import PoolUnavailable, SubmitContext, WorkerError
from worker_adapters.host import AdapterHost
from worker_adapters.observe.logs import Logs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def lines_of(main: Callable[[AdapterHost], Coroutine[None, None, None]]) -> list[logging.LogRecord]:
    """Run it with a host that logs, and return the records."""
    told: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record)

    logger = logging.Logger("told")  # noqa: LOG001 - in no hierarchy
    logger.addHandler(Kept())
    logs = Logs(logger)

    async def hosted() -> None:
        clock = asyncio.get_running_loop().time
        async with AdapterHost(logs=logs, probes=QUIET, clock=clock) as host:
            await main(host)

    run(hosted())
    assert logs.flush()
    logs.close()
    return told


def told(record: logging.LogRecord, *names: str) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in names)


def test_a_breaker_a_retry_and_a_refusal() -> None:
    context = SubmitContext(job_id="job", correlation_id="mine", queue_position=3)

    async def main(host: AdapterHost) -> None:
        broken = failed("connect", correlation_id="mine")
        host.bind(Scripted("a", play=lambda _: broken))
        host.bind(Scripted("b", play=lambda _: broken))
        with pytest.raises(WorkerError):
            await host.submit("pool", task(), context=context)
        for _ in range(4):
            with pytest.raises(WorkerError):
                await host.submit("pool", task(), context=context)
        with pytest.raises(PoolUnavailable) as caught:
            await host.submit("pool", given, context=context)
        assert caught.value.detail == "circuit_open"

    given = task()
    records = lines_of(main)
    retry, *_ = [record for record in records if told(record, "action") == ("retry",)]
    assert told(retry, "actor", "job_id", "correlation_id", "queue_position") == (
        "adapter-host", "job", "mine", 3,
    )  # fmt: skip
    assert told(retry, "detail", "attempt", "levelname") == ("connect", 1, "WARNING")
    opened = [record for record in records if told(record, "action") == ("breaker",)]
    assert {told(record, "target", "state", "detail") for record in opened} == {
        ("pool/a", "open", "connect"),
        ("pool/b", "open", "connect"),
    }
    refusal = records[-1]
    assert told(refusal, "action", "code", "detail", "phase", "target") == (
        "error", "POOL_UNAVAILABLE", "circuit_open", "queue", "pool/-",
    )  # fmt: skip
    assert told(refusal, "task_id", "session_id") == (str(given.task_id), str(given.session_id))
    for record in records:
        assert record.getMessage().endswith(".")
        assert "canary" not in str(vars(record))
        assert not [word for word in record.getMessage().split() if _is_id(word)]


def _is_id(word: str) -> bool:
    try:
        UUID(word)
    except ValueError:
        return False
    return True
