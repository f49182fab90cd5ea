"""Lines and readiness records about a real llama.cpp: what they say is what the engine did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.support import task
from tests.unit.observe.lines import heard
from worker_adapters import LlamaCppAdapter, SubmitContext
from worker_adapters.discovery import Readiness
from worker_adapters.host import AdapterHost

if TYPE_CHECKING:
    from worker_adapters.testing.llamacpp import LlamaCppServer

pytestmark = pytest.mark.real


async def test_lines_and_records_say_what_the_engine_did(server: LlamaCppServer) -> None:
    with heard() as ears:
        async with AdapterHost(logs=ears.logs) as host:
            readiness = Readiness(host)
            host.bind(LlamaCppAdapter(server.url, pool_id="chat", replica_id="a", logs=ears.logs))
            context = SubmitContext(correlation_id="corr-1")
            stream = await host.submit("chat", task(max_tokens=40), context=context)
            answer = await stream.collect()
            cut_short = await host.submit("chat", task(max_tokens=1000))
            await anext(cut_short)
            await cut_short.cancel()
            (record,) = await readiness.records()
        lines = ears.lines()
    assert [line["action"] for line in lines] == [
        "submit",
        "start",
        "end",
        "submit",
        "start",
        "cancel",
    ]
    end = lines[2]
    assert answer.usage_source == "engine"
    assert (end["tokens_in"], end["tokens_out"]) == (answer.tokens_in, answer.tokens_out)
    assert end["engine_version"] == answer.engine_version == record.engine_version
    assert end["correlation_id"] == "corr-1"
    assert (record.health.ready, record.slots_total) == (True, 4)
    assert record.perf_hints.first_token_ms is not None
    assert answer.decode_ms == 0 or record.perf_hints.perf_tokens_per_s is not None
