"""JSON that engines answer: whatever it holds can be sent, logged and written again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engines.played import engine as recorded
from tests.unit.tasks import adapter, task
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    Connection,
    answer,
    final,
    frame,
    playing,
)
from worker_adapters import OpenAiAdapter
from worker_adapters.engines._json import read_json

HALF = r"\ud800"
PAIR = r"\ud83d\ude00"

TEXT = st.text(st.characters(exclude_categories=[]))

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


@given(ANY_JSON)
def test_what_is_read_can_be_written(told: Any) -> None:
    read = read_json(json.dumps(told).encode())
    json.dumps(read, ensure_ascii=False).encode()
    try:
        json.dumps(told, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert read != told
    else:
        assert read == told


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (rf'"b1{HALF}"', "b1\ufffd"),
        (r'"\uDFFF"', "\ufffd"),
        (rf'["{PAIR}",{{"{HALF}a":"{HALF}"}}]', ["\U0001f600", {"\ufffda": "\ufffd"}]),
        (r'"\\ud800"', r"\ud800"),
        ("\ufeff1", 1),
    ],
)
def test_half_a_character_is_replaced(said: str, read: Any) -> None:
    assert read_json(said.encode()) == read


@pytest.mark.parametrize(
    "said",
    [b'"\xed\xa0\x80"', b'"\xff"', '"a"'.encode("utf-16"), b"NaN", b"[Infinity]", b"", b"1" * 9999],
)
def test_what_is_no_json_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - a decoder's, or one of JSON's
        read_json(said)


async def test_a_task_runs_on_an_engine_that_tells_half_a_character() -> None:
    props = answer(PROPS.replace("b1-0c1e570", HALF).replace('"tiny"', f'"{HALF}"'))

    async def play(connection: Connection) -> None:
        while True:
            request = await connection.request()
            if request.path == "/completion":
                await connection.send(STREAM_HEAD, frame("a", 1), final(1), LAST_CHUNK)
            elif request.path == "/props":
                await connection.send(props)
            else:
                await connection.send(answer("{}", "404 Not Found"))

    async with playing(play) as server, adapter(server.url) as worker:
        stream = await worker.submit(task())
        assert (await stream.collect()).text == "a"
        assert (await worker.engine_version()) == "\ufffd"
        capabilities = await worker.capabilities()
        assert json.loads(capabilities.model_dump_json())["engine_version"] == "\ufffd"


async def test_a_server_that_tells_half_a_character_of_its_model() -> None:
    listing = f'{{"object":"list","data":[{{"id":"{HALF}","root":"{HALF}"}}]}}'
    async with (
        recorded({"GET /v1/models": answer(listing)}) as server,
        OpenAiAdapter(server.url) as worker,
    ):
        identity = await worker.identity()
        assert identity.model == "\ufffd"
        identity.model_dump_json()
