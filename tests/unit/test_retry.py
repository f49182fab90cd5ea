"""Retries: which requests are sent again, after what pause, and how often in all."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.tasks import adapter, task
from tests.unit.test_stream import shape
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    answer,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import (
    AdapterError,
    ExpectedModel,
    PoolUnavailable,
    RetryPolicy,
    Timeouts,
    WorkerError,
    WorkerIdentity,
    WorkerReset,
)
from worker_adapters.errors import from_fields
from worker_adapters.retry import Repeat, Retries
from worker_adapters.testing.wire import RawServer, response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from tests.unit.wire import Connection, Received
    from worker_adapters import LlamaCppAdapter

TRANSPORTS = ("httpx", "native")

LOADING = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
NO_SLOT = '{"error":{"code":503,"message":"no slot available","type":"unavailable_error"}}'
BOOM = '{"error":{"code":500,"message":"boom","type":"server_error"}}'


def most(low: float, high: float) -> float:
    """Draw the longest pause."""
    del low
    return high


class Longest(random.Random):
    """Draws the longest pauses."""

    def uniform(self, a: float, b: float) -> float:
        return most(a, b)


def failed(detail: str = "connect", **fields: Any) -> WorkerError:
    given = {"kind": "PoolUnavailable", "message": "", "retriable": True, "processed": "no"}
    return from_fields({**given, "detail": detail, **fields})


# The policy alone.


def test_the_contract_s_defaults() -> None:
    policy = RetryPolicy()
    assert (policy.attempts, policy.base, policy.factor, policy.cap) == (4, 0.1, 2.0, 2.0)
    assert (policy.budget, policy.floor) == (0.1, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 11},
        {"attempts": 1.5},
        {"base": 0},
        {"base": float("nan")},
        {"factor": 0.5},
        {"cap": float("inf")},
        {"budget": 1.1},
        {"budget": -0.1},
        {"floor": -1},
        {"floor": 1001},
        {"factor": 10.5},
        {"base": 60.5},
        {"cap": 60.5},
        {"budget": float("nan")},
        {"floor": 0.5},
        {"floor": "3"},
        {"attempts": "2"},
        {"attempts": True},
    ],
)
def test_a_policy_that_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetryPolicy(**wrong)


def test_a_policy_at_its_bounds() -> None:
    for bounds in [
        {"attempts": 10, "base": 60, "factor": 10, "cap": 60, "budget": 1, "floor": 1000},
        {"attempts": 1, "factor": 1, "budget": 0, "floor": 0},
    ]:
        policy = RetryPolicy.model_validate(bounds)
        assert {name: getattr(policy, name) for name in bounds} == bounds


def test_pauses_grow_up_to_the_cap() -> None:
    retries = Retries(RetryPolicy(attempts=10), most)
    pauses = [retries.pause(number) for number in range(7)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_pauses_are_drawn_from_nothing_to_the_whole() -> None:
    retries = Retries(RetryPolicy(), random.Random(7).uniform)
    drawn = [retries.pause(2) for _ in range(2000)]
    assert 0 <= min(drawn) < 0.01
    assert 0.39 < max(drawn) <= 0.4
    assert sum(drawn) / len(drawn) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_no_more_attempts_than_the_policy_has(attempts: int) -> None:
    request = Retries(RetryPolicy(attempts=attempts), most).begin()
    pauses = [request.pause_after(failed(), Repeat.HARMFUL, 0, None) for _ in range(attempts)]
    assert [pause is not None for pause in pauses] == [True] * (attempts - 1) + [False]


def test_a_pause_ends_before_the_deadline_or_is_not_begun() -> None:
    def pause(until: float | None) -> float | None:
        request = Retries(RetryPolicy(), most).begin()
        return request.pause_after(failed(), Repeat.HARMLESS, 100.0, until)

    assert pause(None) == pytest.approx(0.1)
    assert pause(100.2) == pytest.approx(0.1)
    assert pause(100.1) is None
    assert pause(100.0) is None
    assert pause(99.0) is None


def test_what_the_engine_asks_for_wins() -> None:
    retries = Retries(RetryPolicy(), most)
    asked = failed("loading", retry_after_ms=7_000)
    assert retries.begin().pause_after(asked, Repeat.HARMFUL, 0, None) == 7.0
    assert retries.begin().pause_after(asked, Repeat.HARMFUL, 0, 7.0) is None
    none = failed("loading", retry_after_ms=0)
    assert retries.begin().pause_after(none, Repeat.HARMFUL, 0, None) == 0.0


@pytest.mark.parametrize("past", [0.0, 1e-9, 0.0004, 0.0006, 0.000999])
def test_a_pause_that_leaves_less_than_a_millisecond_is_not_begun(past: float) -> None:
    retries = Retries(RetryPolicy(), most)
    asked = failed("loading", retry_after_ms=600)
    for at in (0.0, 1000.1, 123456.7):
        until = at + 0.6 + past
        assert retries.begin().pause_after(asked, Repeat.HARMFUL, at, until) is None
        until = at + 0.602
        assert retries.begin().pause_after(asked, Repeat.HARMFUL, at, until) == 0.6


@pytest.mark.parametrize(
    ("error", "harmless", "wasteful", "harmful"),
    [
        (failed("connect"), True, True, True),
        (failed("resolve"), True, True, True),
        (failed("loading", status=503), True, True, True),
        (failed("queue_full", status=503), True, True, True),
        (failed("rate_limited", status=429), True, True, False),
        (failed("queue_full", status=429), True, True, False),
        (failed("unavailable", status=503, processed="unknown"), True, True, False),
        (failed("reset", kind="WorkerReset", processed="unknown"), True, True, False),
        (failed("truncated", kind="WorkerReset", processed="yes"), True, False, False),
        (failed("engine_error", kind="WorkerReset", processed="unknown"), True, True, False),
        (failed("gateway_timeout", kind="DecodeTimeout", processed="unknown"), True, True, False),
        (failed("saturated"), False, False, False),
        (failed("circuit_open"), False, False, False),
        (failed("unary_timeout", kind="DecodeTimeout", processed="unknown"), False, False, False),
        (failed("tls_verify", kind="Adapter", retriable=False), False, False, False),
        (failed("deadline", kind="DeadlineUnmet", retriable=False), False, False, False),
    ],
)
def test_what_may_be_sent_again(
    error: WorkerError, harmless: bool, wasteful: bool, harmful: bool
) -> None:
    fit = [kind.is_fit(error) for kind in (Repeat.HARMLESS, Repeat.WASTEFUL, Repeat.HARMFUL)]
    assert fit == [harmless, wasteful, harmful]


@given(
    steps=st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=400),
    attempts=st.integers(1, 10),
    budget=st.floats(0, 0.5),
    floor=st.integers(0, 20),
)
def test_an_outage_is_not_made_worse(
    steps: list[float], attempts: int, budget: float, floor: int
) -> None:
    retries = Retries(RetryPolicy(attempts=attempts, budget=budget, floor=floor), most)
    now = began = 1000.0
    sent = 0
    for count, step in enumerate(steps, 1):
        now += step
        request = retries.begin()
        sent += 1
        while request.pause_after(failed(), Repeat.HARMFUL, now, None) is not None:
            sent += 1
        allowed = count * (1 + budget) + floor * (now - began + 1)
        assert sent <= allowed + 1e-6
        assert sent <= count * attempts


def test_ten_thousand_calls_that_all_fail() -> None:
    retries = Retries(RetryPolicy(), most)
    sent = 0
    for number in range(10_000):
        request = retries.begin()
        sent += 1
        while request.pause_after(failed(), Repeat.HARMLESS, number / 1000, None) is not None:
            sent += 1
    # Ten seconds of a thousand calls each: a tenth, and the floor.
    assert 11_000 <= sent <= 11_000 + 10 * 11


def test_the_floor_comes_back_with_time_and_no_higher() -> None:
    retries = Retries(RetryPolicy(budget=0, floor=10), most)
    assert [retries.spend(7.0) for _ in range(11)] == [True] * 10 + [False]
    assert [retries.spend(7.5) for _ in range(6)] == [True] * 5 + [False]
    assert [retries.spend(60.0) for _ in range(11)] == [True] * 10 + [False]


def test_instants_that_come_out_of_order_cost_nothing() -> None:
    retries = Retries(RetryPolicy(budget=0, floor=10), most)
    assert [retries.spend(at) for at in (7.0, 7.0, 6.0, 5.0)] == [True] * 4
    assert [retries.spend(5.0) for _ in range(7)] == [True] * 6 + [False]


def test_a_calm_saves_up_a_hundred_retries() -> None:
    retries = Retries(RetryPolicy(attempts=2), most)
    for _ in range(100_000):
        retries.begin()
    assert [retries.spend(0.0) for _ in range(101)] == [True] * 100 + [False]


# On the wire.


def each(*answers: bytes) -> Callable[[Connection, Received], Awaitable[None]]:
    """Give these answers, one after the other; the last one for ever."""
    left = list(answers)

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(left.pop(0) if len(left) > 1 else left[0])
        if left[0].startswith(STREAM_HEAD):
            connection.close()

    return script


def everywhere(*answers: bytes) -> Callable[[Connection], Coroutine[Any, Any, None]]:
    """Give these answers to whatever is asked, and note when."""
    script = each(*answers)

    async def play(connection: Connection) -> None:
        while True:
            await script(connection, await connection.request())

    return play


STREAMED = STREAM_HEAD + frame("a", 1) + final(1) + LAST_CHUNK


def retrying(server: RawServer, **options: Any) -> LlamaCppAdapter:
    """Return an adapter that retries, on the loop's clock and with the longest pauses."""
    given = {
        "retries": RetryPolicy(),
        "rng": Longest(7),
        "clock": asyncio.get_running_loop().time,
        **options,
    }
    return adapter(server.url, **given)


class Timed(RawServer):
    """Notes at what time each request came in, on the loop's clock."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__()
        self._answers = each(*answers)
        self.times: list[float] = []

    async def play(self, connection: Connection) -> None:
        while True:
            request = await connection.request()
            self.times.append(asyncio.get_running_loop().time())
            await self._answers(connection, request)

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


def refusing(body: str = "", status: str = "503 Service Unavailable", *lines: str) -> bytes:
    headers = tuple((line.split(": ")[0], line.split(": ")[1]) for line in lines)
    return response(body, status, headers=headers)


def test_a_call_is_repeated_after_growing_pauses() -> None:
    async def main() -> None:
        async with Timed(refusing()) as server, retrying(server) as made:
            with pytest.raises(PoolUnavailable):
                await made.props()
            assert server.pauses == pytest.approx([0.1, 0.2, 0.4], abs=0.02)

    run_virtually(main())


def test_without_a_policy_of_one_s_own_the_contract_s_holds() -> None:
    async def main() -> None:
        async with Timed(refusing()) as server, retrying(server, retries=None) as made:
            with pytest.raises(PoolUnavailable):
                await made.engine_version()
            assert len(server.times) == 4

    run_virtually(main())


def test_retries_can_be_switched_off() -> None:
    async def main() -> None:
        off = RetryPolicy(attempts=1)
        async with Timed(refusing(LOADING)) as server, retrying(server, retries=off) as made:
            for call in (made.props, made.engine_version, lambda: made.submit(task())):
                with pytest.raises(PoolUnavailable):
                    await call()
            assert len(server.times) == 3

    run_virtually(main())


@pytest.mark.parametrize(
    ("status", "repeated"),
    [
        ("408 Request Timeout", True),
        ("425 Too Early", True),
        ("429 Too Many Requests", True),
        ("500 Internal Server Error", True),
        ("502 Bad Gateway", True),
        ("503 Service Unavailable", True),
        ("504 Gateway Timeout", True),
        ("400 Bad Request", False),
        ("401 Unauthorized", False),
        ("404 Not Found", False),
        ("409 Conflict", False),
        ("501 Not Implemented", False),
        ("307 Temporary Redirect", False),
    ],
)
def test_which_answers_to_a_call_are_not_the_last_word(status: str, repeated: bool) -> None:
    async def main() -> None:
        async with Timed(refusing("", status), answer(PROPS)) as server, retrying(server) as made:
            if repeated:
                assert await made.engine_version() == "b1-0c1e570"
                assert len(server.times) == 2
            else:
                with pytest.raises(WorkerError):
                    await made.engine_version()
                assert len(server.times) == 1

    run_virtually(main())


def test_a_call_whose_connection_breaks_is_repeated() -> None:
    async def main() -> None:
        left = ["break", "cut", ""]

        async def script(connection: Connection) -> None:
            await connection.request()
            match left.pop(0):
                case "break":
                    connection.reset()
                case "cut":
                    await connection.send(answer(PROPS)[:-10])
                    connection.close()
                case _:
                    await connection.send(answer(PROPS))

        async with playing(script) as server, retrying(server) as made:
            assert await made.engine_version() == "b1-0c1e570"
            assert len(server.connections) == 3

    run_virtually(main())


def test_an_answer_that_is_nonsense_is_not_asked_for_again() -> None:
    async def main() -> None:
        async with Timed(answer("{")) as server, retrying(server) as made:
            with pytest.raises(AdapterError):
                await made.engine_version()
            assert len(server.times) == 1

    run_virtually(main())


def test_all_attempts_share_the_clock_of_the_call() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def script(connection: Connection) -> None:
            await connection.request()
            await asyncio.sleep(0.3)
            await connection.send(refusing())

        async with playing(script) as server, retrying(server) as made:
            began = loop.time()
            with pytest.raises(WorkerError) as caught:
                await made.props(timeouts=Timeouts(unary=0.5))
            # The second attempt has begun and is given up with the clock.
            assert caught.value.detail == "unary_timeout"
            assert loop.time() - began == pytest.approx(0.5, abs=0.05)
            assert len(server.connections) == 2

    run_virtually(main())


def test_health_is_asked_once() -> None:
    async def main() -> None:
        async with Timed(refusing(LOADING)) as server, retrying(server) as made:
            health = await made.health()
            assert (health.live, health.ready, health.reason) == (True, False, "loading")
            assert len(server.times) == 1

    run_virtually(main())


# Retry-After.


@pytest.mark.parametrize(
    ("lines", "pause"),
    [
        (("Retry-After: 0",), 0.0),
        (("Retry-After: 5",), 5.0),
        (("retry-after-ms: 250",), 0.25),
        (("Retry-After: 5", "retry-after-ms: 250"), 0.25),
        (("Retry-After: Sun, 06 Nov 1994 08:49:39 GMT",), 2.0),
        (("Retry-After: Sun, 06 Nov 1994 08:49:36 GMT",), 0.0),
        (
            (
                "Retry-After: Sun, 06 Nov 1994 09:49:39 GMT",
                "Date: Sun, 06 Nov 1994 09:49:36 GMT",
            ),
            3.0,
        ),
        (("Retry-After: soon",), 0.1),
        (("Retry-After: -5",), 0.1),
    ],
)
def test_a_call_waits_as_long_as_it_is_told(lines: tuple[str, ...], pause: float) -> None:
    async def main() -> None:
        told = refusing("", "429 Too Many Requests", *lines)
        # Sun, 06 Nov 1994 08:49:37 GMT
        wall = lambda: 784_111_777.0  # noqa: E731
        async with Timed(told, answer(PROPS)) as server:
            async with retrying(server, wall_clock=wall) as made:
                await made.engine_version()
            assert server.pauses == pytest.approx([pause], abs=0.02)

    run_virtually(main())


@pytest.mark.parametrize(
    ("body", "lines", "pause"),
    [
        ('{"error":{"message":"Limit 7000. Please try again in 1.578s. Visit"}}', (), 1.578),
        ('{"error":{"message":"slow down","retry_after":2.5}}', (), 2.5),
        ('{"error":{"code":429,"details":[{"retryDelay":"0.75s"}]}}', (), 0.75),
        ('{"error":{"message":"Please retry after 7 seconds."}}', ("Retry-After: 5",), 5.0),
        ('{"error":{"message":"Please try again in a moment."}}', (), 0.1),
    ],
)
def test_a_call_waits_as_long_as_the_error_says(
    body: str, lines: tuple[str, ...], pause: float
) -> None:
    async def main() -> None:
        told = refusing(body, "429 Too Many Requests", *lines)
        async with Timed(told, answer(PROPS)) as server:
            async with retrying(server) as made:
                await made.engine_version()
            assert server.pauses == pytest.approx([pause], abs=0.02)

    run_virtually(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_refused_submit_says_how_long_the_error_asks_to_wait(transport: str) -> None:
    async def main() -> None:
        said = json.dumps({"error": {"message": "Please try again in 1m47.5854s."}})
        async with Timed(refusing(said, "429 Too Many Requests")) as server:
            async with retrying(server, transport=transport) as made:
                made._identity = WorkerIdentity(engine_version="b1", ctx_max=1024)
                with pytest.raises(PoolUnavailable) as caught:
                    await made.submit(task(deadline_ms=30_000))
            error = caught.value
            assert (error.code, error.detail) == ("ADMISSION_REJECT", "rate_limited")
            # Not past the end of the task.
            assert error.retry_after_ms is not None
            assert 29_000 <= error.retry_after_ms <= 30_000
            assert len(server.times) == 1

    run_virtually(main())


def test_a_call_is_not_kept_waiting_past_its_clock() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = refusing("", "429 Too Many Requests", "Retry-After: 1000000000")
        async with Timed(told) as server, retrying(server) as made:
            began = loop.time()
            with pytest.raises(PoolUnavailable) as caught:
                await made.engine_version()
            assert loop.time() - began < 0.1
            assert caught.value.retry_after_ms == 60_000
            # With as much time as it takes, a minute is waited for and no more.
            with pytest.raises(PoolUnavailable):
                await made.engine_version(timeouts=Timeouts(unary=200.0))
            assert server.pauses[1:] == pytest.approx([60.0, 60.0, 60.0], abs=0.05)

    run_virtually(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_submit_waits_for_a_date(transport: str) -> None:
    async def main() -> None:
        wall = lambda: 784_111_777.0  # noqa: E731
        told = refusing(
            LOADING, "503 Service Unavailable", "Retry-After: Sun, 06 Nov 1994 08:49:39 GMT"
        )
        async with (
            playing(engine(each(told, STREAMED))) as server,
            retrying(server, wall_clock=wall, transport=transport) as made,
        ):
            began = asyncio.get_running_loop().time()
            await (await made.submit(task())).collect()
            assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.1)

    run_virtually(main())


# Submits.


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("body", [LOADING, NO_SLOT])
def test_a_submit_that_was_not_taken_up_is_repeated(transport: str, body: str) -> None:
    async def main() -> None:
        async with (
            playing(engine(each(refusing(body), refusing(body), STREAMED))) as server,
            retrying(server, transport=transport) as made,
        ):
            stream = await made.submit(task())
            assert shape([event async for event in stream]) == ["started", "a", "end:length"]
            sent = server.requests("/completion")
            assert len(sent) == 3
            assert len({request.body for request in sent}) == 1
            assert len({request.headers["x-correlation-id"] for request in sent}) == 1

    run_virtually(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "refusal",
    [
        refusing("", "503 Service Unavailable"),
        refusing("", "429 Too Many Requests", "Retry-After: 0"),
        refusing("", "502 Bad Gateway"),
        refusing("", "504 Gateway Timeout"),
        refusing("", "408 Request Timeout"),
        refusing("", "425 Too Early"),
        refusing(BOOM, "500 Internal Server Error"),
        refusing("", "400 Bad Request"),
    ],
    ids=lambda refusal: refusal[9:12].decode(),
)
def test_a_submit_that_may_have_been_taken_up_is_sent_once(transport: str, refusal: bytes) -> None:
    async def main() -> None:
        async with (
            playing(engine(each(refusal, STREAMED))) as server,
            retrying(server, transport=transport) as made,
        ):
            with pytest.raises(WorkerError):
                await made.submit(task())
            assert len(server.requests("/completion")) == 1

    run_virtually(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("after", ["request", "head", "token"])
def test_a_submit_whose_connection_breaks_is_sent_once(transport: str, after: str) -> None:
    async def main() -> None:
        async def script(connection: Connection, _: Received) -> None:
            match after:
                case "head":
                    await connection.send(STREAM_HEAD)
                case "token":
                    await connection.send(STREAM_HEAD, frame("a", 1))
            connection.close()

        async with (
            playing(engine(script)) as server,
            retrying(server, transport=transport) as made,
        ):
            with pytest.raises(WorkerReset):
                await (await made.submit(task())).collect()
            assert len(server.requests("/completion")) == 1

    run_virtually(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_submit_that_found_nobody_is_repeated(transport: str) -> None:
    async def main() -> None:
        first = Timed(answer(PROPS))
        async with first:
            port = int(first.url.rpartition(":")[2])
            made = retrying(first, transport=transport)
            await made.engine_version()
        # Nobody listens now; the engine comes back while the submit waits.
        back = RawServer(engine(each(STREAMED)), port=port)
        submitting = asyncio.create_task(made.submit(task()))
        await eventually(lambda: made._retries._left < 10, "it pauses")
        async with back, made:
            stream = await submitting
            assert (await stream.collect()).text == "a"
            # Whoever came back was asked what it is.
            assert [request.path for request in back.received()] == ["/props", "/completion"]

    run_virtually(main())


def test_whoever_comes_back_with_another_model_gets_no_task() -> None:
    async def main() -> None:
        other = PROPS.replace('"tiny"', '"other"')
        asked: list[str] = []

        async def script(connection: Connection) -> None:
            while True:
                request = await connection.request()
                asked.append(request.path)
                if request.path == "/completion":
                    await connection.send(refusing(LOADING))
                else:
                    await connection.send(answer(other if "/completion" in asked else PROPS))

        expect = ExpectedModel(name="tiny")
        async with playing(script) as server, retrying(server, expect=expect) as made:
            with pytest.raises(AdapterError) as caught:
                await made.submit(task())
            assert caught.value.detail == "wrong_model"
            assert asked == ["/props", "/completion", "/props"]

    run_virtually(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_pause_that_does_not_end_before_the_deadline_is_not_begun(transport: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = refusing(LOADING, "503 Service Unavailable", "Retry-After: 5")
        async with (
            playing(engine(each(told, STREAMED))) as server,
            retrying(server, transport=transport) as made,
        ):
            await made.engine_version()
            began = loop.time()
            with pytest.raises(PoolUnavailable) as caught:
                await made.submit(task(deadline_ms=4_000))
            assert loop.time() - began < 0.5
            assert (caught.value.detail, caught.value.processed) == ("loading", "no")
            # With a second more it is.
            told_again = await made.submit(task(deadline_ms=60_000))
            await told_again.collect()
            assert len(server.requests("/completion")) == 2

    run_virtually(main())


@pytest.mark.parametrize("took", [0.0004, 0.0006])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_pause_that_was_cut_to_the_deadline_is_not_begun(transport: str, took: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def loading(connection: Connection, _: Received) -> None:
            await asyncio.sleep(took)
            told = refusing(LOADING, "503 Service Unavailable", "Retry-After: 30")
            await connection.send(told)

        async with (
            playing(engine(loading)) as server,
            retrying(server, transport=transport) as made,
        ):
            await made.engine_version()
            began = loop.time()
            with pytest.raises(PoolUnavailable) as caught:
                await made.submit(task(deadline_ms=600))
            assert loop.time() - began < 0.1
            assert 500 < (caught.value.retry_after_ms or 0) <= 600
            assert len(server.requests("/completion")) == 1

    run_virtually(main())


def test_what_the_engine_is_asks_no_longer_than_somebody_waits() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = refusing("", "503 Service Unavailable", "Retry-After: 5")
        async with Timed(told) as server, retrying(server) as made:
            began = loop.time()
            with pytest.raises(PoolUnavailable) as caught:
                await made.submit(task(deadline_ms=1_000))
            assert loop.time() - began < 0.5
            assert caught.value.processed == "no"
            assert len(server.times) == 1

    run_virtually(main())


def test_the_deadline_covers_all_attempts() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def slow(connection: Connection, _: Received) -> None:
            await asyncio.sleep(0.7)
            await connection.send(refusing(NO_SLOT))

        async with playing(engine(slow)) as server, retrying(server) as made:
            await made.engine_version()
            began = loop.time()
            with pytest.raises(WorkerError) as caught:
                await made.submit(task(deadline_ms=1_000))
            assert caught.value.kind == "DeadlineUnmet"
            assert loop.time() - began == pytest.approx(1.0, abs=0.05)
            assert len(server.requests("/completion")) == 2

    run_virtually(main())


@pytest.mark.parametrize("by", ["cancel", "aclose"])
def test_a_submit_can_be_cancelled_while_it_pauses(by: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = refusing(LOADING, "503 Service Unavailable", "Retry-After: 30")
        asked = task(deadline_ms=300_000)
        async with playing(engine(each(told))) as server, retrying(server) as made:
            submitting = asyncio.create_task(made.submit(asked))
            await server.asked("/completion")
            await asyncio.sleep(0.5)
            began = loop.time()
            if by == "cancel":
                assert (await made.cancel(asked.task_id)).sent
            else:
                await made.aclose()
            stream = await submitting
            assert shape([event async for event in stream]) == ["end:cancelled"]
            assert loop.time() - began < 0.5
            assert len(server.requests("/completion")) == 1

    run_virtually(main())


# Embeddings and reranking.

VECTORS = '{"data":[{"index":0,"embedding":[0.5]}]}'


def test_embedding_is_repeated_while_there_is_no_result() -> None:
    async def main() -> None:
        refusals = (refusing("", "429 Too Many Requests"), refusing(BOOM, "500 Oops"))
        async with (
            playing(engine(each(*refusals, answer(VECTORS)))) as server,
            retrying(server) as made,
        ):
            asked = task(workload="embedding", prompt="a")
            assert await made.embed(asked) == [[0.5]]
            assert len(server.requests("/v1/embeddings")) == 3

    run_virtually(main())


def test_an_embedding_that_was_cut_off_had_been_made() -> None:
    async def main() -> None:
        async def cut(connection: Connection, _: Received) -> None:
            await connection.send(answer(VECTORS)[:-3])
            connection.close()

        async with playing(engine(cut)) as server, retrying(server) as made:
            with pytest.raises(WorkerReset):
                await made.embed(task(workload="embedding", prompt="a"))
            assert len(server.requests("/v1/embeddings")) == 1

    run_virtually(main())


# The budget of an adapter.


def test_an_adapter_that_only_fails_sends_little_more_than_it_is_asked_to() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Timed(refusing()) as server, retrying(server) as made:
            began = loop.time()
            for _ in range(300):
                with pytest.raises(PoolUnavailable):
                    await made.engine_version()
            taken = loop.time() - began
            assert 330 <= len(server.times) <= 330 + 10 * (taken + 1)

    run_virtually(main())
