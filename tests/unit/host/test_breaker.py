"""The breaker alone, on instants that the test makes up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.host.scripted import failed
from worker_adapters.host import BreakerPolicy
from worker_adapters.host.breaker import ENOUGH_SEEN, LONGEST_RUN, Breaker, is_failure

POLICY = BreakerPolicy()


def permit(breaker: Breaker, now: float = 0.0) -> int:
    taken = breaker.acquire(now)
    assert taken is not None
    return taken


def state_of(breaker: Breaker) -> str:
    return breaker.state


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    for number in range(5):
        assert breaker.failed(permit(breaker, now), now) is (number == 4)
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = opened(10.0)
    assert state_of(breaker) == "open"
    assert breaker.trips == 1
    assert breaker.acquire(10.0) is None
    assert breaker.retry_after(10.0) == POLICY.cooldown
    assert breaker.retry_after(11.5) == pytest.approx(POLICY.cooldown - 1.5)


def test_a_success_ends_the_run() -> None:
    breaker = Breaker(POLICY)
    for _ in range(3):
        for _ in range(4):
            assert not breaker.failed(permit(breaker), 0.0)
        breaker.succeeded(permit(breaker))
    assert state_of(breaker) == "closed"


def test_an_answer_alone_ends_no_run() -> None:
    # Otherwise an engine that answers 200 and dies each time would never be left alone.
    breaker = Breaker(POLICY)
    for number in range(5):
        taken = permit(breaker)
        breaker.answered(taken)
        assert breaker.failed(taken, 0.0) is (number == 4)


def test_after_the_cooldown_there_is_one_trial() -> None:
    breaker = opened()
    now = POLICY.cooldown
    assert breaker.retry_after(now) is None
    trial = permit(breaker, now)
    assert state_of(breaker) == "half_open"
    assert breaker.acquire(now) is None
    assert breaker.retry_after(now) == POLICY.cooldown
    breaker.succeeded(trial)
    assert state_of(breaker) == "closed"
    assert [breaker.acquire(now) is not None for _ in range(3)] == [True] * 3


def test_a_trial_that_fails_opens_it_for_twice_as_long_up_to_the_cap() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(6):
        wait = breaker.retry_after(now)
        assert wait is not None
        waits.append(wait)
        now += wait
        assert breaker.failed(permit(breaker, now), now)
    assert waits == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_trial_that_is_answered_closes_it_on_probation() -> None:
    breaker = opened()
    trial = permit(breaker, 2.0)
    breaker.answered(trial)
    assert state_of(breaker) == "closed"
    other = permit(breaker, 2.0)
    assert breaker.failed(trial, 2.5)
    assert state_of(breaker) == "open"
    breaker.succeeded(other)
    assert state_of(breaker) == "open"


def test_a_trial_that_comes_to_nothing_leaves_room_for_another() -> None:
    breaker = opened()
    breaker.abandoned(permit(breaker, 2.0))
    assert state_of(breaker) == "open"
    breaker.succeeded(permit(breaker, 2.0))
    assert state_of(breaker) == "closed"


def test_what_began_before_says_nothing_after() -> None:
    breaker = Breaker(POLICY)
    old = [permit(breaker) for _ in range(20)]
    for taken in old[:5]:
        breaker.failed(taken, 0.0)
    trial = permit(breaker, 2.0)
    for taken in old[5:12]:
        assert not breaker.failed(taken, 2.0)
    for taken in old[12:]:
        breaker.succeeded(taken)
        breaker.abandoned(taken)
    assert state_of(breaker) == "half_open"
    breaker.succeeded(trial)
    assert breaker.trips == 1


def test_probes_open_it_and_good_ones_do_not_hide_failing_tasks() -> None:
    breaker = Breaker(POLICY)
    assert [breaker.probed(False, 0.0) for _ in range(5)] == [False] * 4 + [True]
    breaker = Breaker(POLICY)
    for number in range(5):
        breaker.probed(True, 0.0)
        assert breaker.failed(permit(breaker), 0.0) is (number == 4)


def test_a_replica_that_was_gone_and_is_back_is_tried_at_once() -> None:
    breaker = opened()
    breaker.came_back(0.25)
    breaker.failed(permit(breaker, 0.25), 0.25)
    # Nor does its cooldown grow for the time that it was gone.
    assert breaker.retry_after(0.25) == POLICY.cooldown


def test_a_replica_that_fails_now_and_then_is_given_a_longer_run() -> None:
    draws = random.Random(7)
    breaker = Breaker(POLICY)
    for number in range(100_000):
        taken = permit(breaker, float(number))
        if number >= 2 * ENOUGH_SEEN and draws.random() < 0.2:
            breaker.failed(taken, float(number))
        else:
            breaker.succeeded(taken)
    assert breaker.trips == 0
    # It is still cut off when it is gone.
    run = 0
    while state_of(breaker) == "closed":
        breaker.failed(permit(breaker), 0.0)
        run += 1
    assert 5 < run <= LONGEST_RUN * POLICY.failures


@pytest.mark.parametrize(
    ("good", "bad", "run"), [(19, 1, 5), (4, 1, 9), (7, 3, 12), (1, 1, 20), (1, 3, 20)]
)
def test_how_long_a_run_it_takes_by_how_often_a_replica_fails(
    good: int, bad: int, run: int
) -> None:
    breaker = Breaker(POLICY)
    for _ in range(ENOUGH_SEEN):
        breaker.succeeded(permit(breaker))
    for _ in range(3000):
        for _ in range(bad):
            breaker.failed(permit(breaker), 0.0)
        for _ in range(good):
            breaker.succeeded(permit(breaker))
    for number in range(run):
        assert breaker.failed(permit(breaker), 0.0) is (number == run - 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "ok", "fail", "drop", "head", "up", "down", "back"]),
            st.floats(min_value=0.0, max_value=5.0),
        ),
        max_size=60,
    )
)
def test_there_is_never_more_than_one_trial(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(POLICY), 0.0
    held: list[int] = []
    for step, pause in steps:
        now += pause
        match step:
            case "take":
                blocked = breaker.retry_after(now)
                taken = breaker.acquire(now)
                assert (taken is None) == (blocked is not None)
                if taken is not None:
                    held.append(taken)
            case "up" | "down":
                breaker.probed(step == "up", now)
            case "back":
                breaker.came_back(now)
            case _ if held:
                taken = held[0]
                if step == "ok":
                    breaker.succeeded(taken)
                elif step == "fail":
                    breaker.failed(taken, now)
                elif step == "drop":
                    breaker.abandoned(taken)
                else:
                    breaker.answered(taken)
                if step != "head":
                    held.pop(0)
        if breaker.state == "half_open":
            assert breaker.acquire(now) is None
            assert sum(taken == breaker._generation for taken in held) <= 1
        wait = breaker.retry_after(now)
        assert wait is None or 0 < wait <= POLICY.cooldown_cap


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (failed("connect"), True),
        (failed("unavailable", status=503), True),
        (failed("engine_error", status=500), True),
        (failed("reset"), True),
        (failed("first_token"), True),
        (failed("bad_json"), True),
        (failed("rate_limited", status=429), False),
        (failed("queue_full"), False),
        (failed("loading", status=503), True),
        (failed("fd"), False),
        (failed("saturated"), False),
        (failed("invalid_request", status=400), False),
        (failed("duplicate_id"), False),
        (failed("internal", kind="Internal"), False),
    ],
)
def test_what_counts(error: object, counts: bool) -> None:
    assert is_failure(error, 1.0, 5.0) is counts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "waited", "counts"),
    [("head", 4.9, False), ("head", 5.0, True), ("first_token", 9.0, True), ("stream", 9.0, False)],
)
def test_a_deadline_counts_where_the_replica_had_time_and_did_nothing(
    phase: str, waited: float, counts: bool
) -> None:
    assert is_failure(failed("deadline", phase=phase), waited, 5.0) is counts


@pytest.mark.parametrize("fields", [{"failures": 0}, {"cooldown": 0.0}, {"cooldown": float("inf")}])
def test_a_policy_that_is_none(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BreakerPolicy.model_validate(fields)
