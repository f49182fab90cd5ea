"""The host over scripted adapters: binding, submitting, failing over, cancelling, draining."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from tests.unit.host.scripted import (
    GONE,
    LOADING,
    READY,
    Log,
    Scripted,
    failed,
    host_of,
    settled,
    task,
)
from tests.unit.virtual_time import run
from worker_adapters import (
    AdapterError,
    DeadlineUnmet,
    InternalError,
    PoolUnavailable,
    RetryPolicy,
    SubmitContext,
    TokenStream,
    WorkerReset,
)
from worker_adapters._core import Metrics
from worker_adapters.host import AdapterHost, HostEvent, PoolPolicy, ProbePolicy, registry
from worker_adapters.host.events import MAX_OBSERVERS
from worker_adapters.host.host import MAX_DRAIN_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker_adapters.capabilities import AdapterCapabilities


async def kinds(stream: TokenStream) -> list[str]:
    return [event.kind async for event in stream]


def is_closed(adapter: Scripted) -> bool:
    return adapter.is_closed


def left_open(_: object) -> None:
    return None


# Binding.


def test_a_task_goes_to_what_is_bound_and_the_books_are_kept() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        log = Log()
        async with host_of(one, observers=[log]) as host:
            given = task()
            stream = await host.submit("pool", given)
            assert one.tasks == [given]
            assert (await host.health("pool")).in_flight == 1
            body = one.bodies[given.task_id]
            body.say("hello")
            body.finish()
            collected = await stream.collect()
            assert collected.text == "hello"
            assert (await host.health("pool")).in_flight == 0
        assert is_closed(one)
        assert [event.action for event in log.events] == [
            "bind", "submit", "start", "ready", "end", "closed",
        ]  # fmt: skip
        assert log.events[1].in_flight == 1
        assert log.events[4].in_flight == 0

    run(main())


def test_a_place_is_bound_once() -> None:
    async def main() -> None:
        async with host_of(Scripted("a")) as host:
            with pytest.raises(ValueError, match="pool/a is bound already"):
                host.bind(Scripted("a"))
            with pytest.raises(ValueError, match="nothing is bound as pool/b"):
                host.rebind(Scripted("b"))
            with pytest.raises(ValueError, match="nothing is bound as other/a"):
                host.unbind("other", "a")
            with pytest.raises(ValueError, match="unbind them first"):
                host.forget("pool")
            host.unbind("pool", "a")
            # It is known still, and may be bound again in a moment.
            with pytest.raises(PoolUnavailable) as caught:
                await host.submit("pool", task())
            assert (caught.value.code, caught.value.retriable) == ("POOL_UNREADY", True)
            host.forget("pool")
            with pytest.raises(AdapterError) as unknown:
                await host.submit("pool", task())
            assert (unknown.value.code, unknown.value.detail) == ("INVALID_PARAMS", "not_found")

    run(main())


def test_an_adapter_is_given_to_a_host_once() -> None:
    async def main() -> None:
        one, two = Scripted("a"), Scripted("a")
        async with host_of(one) as host:
            with pytest.raises(ValueError, match="pool/a has been given to this host already"):
                host.rebind(one)
            await settled()
            assert not is_closed(one)
            assert await kinds(await host.submit("pool", task()))
            one.replica_id = "b"
            with pytest.raises(ValueError, match="pool/b has been given"):
                host.bind(one)
            host.rebind(two)
            host.unbind("pool", "a")
            # On its way out, and closed.
            for _ in range(2):
                with pytest.raises(ValueError, match="pool/a has been given"):
                    host.bind(two)
                await settled()
            assert is_closed(one)
            assert is_closed(two)

    run(main())


def test_a_rebind_lets_streams_finish_on_the_old_adapter_and_closes_it_then() -> None:
    async def main() -> None:
        old, new = Scripted("a", play=left_open), Scripted("a")
        async with host_of(old) as host:
            given = task()
            stream = await host.submit("pool", given)
            body = old.bodies[given.task_id]
            body.say("one")
            assert [(await anext(stream)).kind for _ in range(2)] == ["started", "token"]
            host.rebind(new)
            assert await kinds(await host.submit("pool", task())) == [
                "started", "token", "token", "end",
            ]  # fmt: skip
            assert len(new.tasks) == 1
            body.say("two")
            body.finish()
            assert [(await anext(stream)).kind for _ in range(2)] == ["token", "end"]
            await settled()
            # Its end has been decoded and delivered, but somebody may still ask for more.
            assert not is_closed(old)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            await settled()
            assert is_closed(old)
            assert not is_closed(new)

    run(main())


def test_what_had_arrived_is_read_after_a_rebind() -> None:
    async def main() -> None:
        old = Scripted("a", play=lambda _: 3)
        async with host_of(old) as host:
            stream = await host.submit("pool", task())
            host.rebind(Scripted("a"))
            await settled()
            assert await kinds(stream) == ["started", "token", "token", "token", "end"]

    run(main())


@pytest.mark.parametrize("way", ["aclose", "drop"])
def test_an_old_adapter_is_closed_when_its_last_stream_is_left(way: str) -> None:
    async def main() -> None:
        old = Scripted("a", play=left_open)
        async with host_of(old) as host:
            given = task()
            stream: TokenStream | None = await host.submit("pool", given)
            assert stream is not None
            host.rebind(Scripted("a"))
            await settled()
            assert not is_closed(old)
            if way == "aclose":
                await stream.aclose()
            else:
                old.drop(given.task_id)
                stream = None
                gc.collect()
            await settled()
            assert is_closed(old)
            assert await host.cancel("pool", given.task_id) is not None
            assert host._dispatcher.tickets == {}

    run(main())


def test_an_idle_adapter_is_closed_when_it_is_replaced() -> None:
    async def main() -> None:
        old = Scripted("a")
        async with host_of(old) as host:
            host.rebind(Scripted("a"))
            await settled()
            assert is_closed(old)

    run(main())


def test_readers_of_the_registry_keep_the_snapshot_they_took() -> None:
    async def main() -> None:
        async with host_of(Scripted("a"), Scripted("b")) as host:
            before = host.registry.snapshot
            pool = before["pool"]
            host.unbind("pool", "a")
            host.bind(Scripted("c"))
            assert [replica.replica_id for replica in pool.replicas] == ["a", "b"]
            assert before["pool"] is pool
            now = host.registry.pool("pool")
            assert now is not None
            assert [replica.replica_id for replica in now.replicas] == ["b", "c"]

    run(main())


# Submitting.


def test_a_correlation_id_is_made_or_passed_on() -> None:
    async def main() -> None:
        one = Scripted("a")
        async with host_of(one) as host:
            await (await host.submit("pool", task())).collect()
            context = SubmitContext(job_id="job", correlation_id="mine")
            await (await host.submit("pool", task(), context=context)).collect()
            await (await host.submit("pool", task(), context=SubmitContext(job_id="j"))).collect()
        made = one.contexts[0].correlation_id
        assert made is not None
        assert UUID(made).version == 4
        assert one.contexts[1] == context
        assert one.contexts[2].job_id == "j"
        assert one.contexts[2].correlation_id not in {None, made}

    run(main())


def test_a_task_that_is_in_flight_is_not_begun_twice() -> None:
    async def main() -> None:
        one, two = Scripted("a", play=left_open), Scripted("b", play=left_open)
        async with host_of(one, two) as host:
            given = task()
            stream = await host.submit("pool", given)
            with pytest.raises(AdapterError) as caught:
                await host.submit("pool", given)
            assert caught.value.detail == "duplicate_id"
            await stream.cancel()
            await (await host.submit("pool", given)).aclose()

    run(main())


def test_a_deadline_that_has_passed_sends_nothing() -> None:
    async def main() -> None:
        one = Scripted("a")
        async with host_of(one) as host:
            with pytest.raises(DeadlineUnmet) as caught:
                await host.submit("pool", task(deadline_ms=0))
            assert caught.value.processed == "no"
            assert one.tasks == []

    run(main())


def test_a_task_that_was_not_taken_up_goes_to_another_replica() -> None:
    async def main() -> None:
        log = Log()
        replicas = [Scripted(name, play=lambda _: failed("connect")) for name in "ab"]
        replicas.append(Scripted("c"))
        async with host_of(*replicas, observers=[log]) as host:
            for _ in range(6):
                assert (await (await host.submit("pool", task())).collect()).tokens_out == 2
            assert [event.attempt for event in log.events if event.action == "retry"]
            assert not [event for event in log.events if event.action == "error"]
            # What was tried is not tried again for the same task.
            for replica in replicas:
                ids = [given.task_id for given in replica.tasks]
                assert len(set(ids)) == len(ids)

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        failed("reset", processed="unknown"),
        failed("engine_error", processed="unknown", status=500),
        failed("first_token", processed="unknown"),
        failed("invalid_request", retriable=False, status=400),
        failed("rate_limited", status=429),
    ],
)
def test_what_may_have_been_taken_up_is_not_repeated(error: Exception) -> None:
    async def main() -> None:
        replicas = [Scripted(name, play=lambda _: error) for name in "ab"]  # type: ignore[return-value,arg-type]
        async with host_of(*replicas) as host:
            with pytest.raises(type(error)):
                await host.submit("pool", task())
            assert sum(len(replica.tasks) for replica in replicas) == 1

    run(main())


def test_nothing_is_repeated_after_the_answer() -> None:
    async def main() -> None:
        replicas = [Scripted(name, play=left_open) for name in "ab"]
        async with host_of(*replicas) as host:
            given = task()
            stream = await host.submit("pool", given)
            (body,) = [r.bodies[given.task_id] for r in replicas if given.task_id in r.bodies]
            body.cut()
            with pytest.raises(WorkerReset):
                await stream.collect()
            assert sum(len(replica.tasks) for replica in replicas) == 1

    run(main())


def test_retries_are_bounded_by_the_policy_and_the_budget() -> None:
    async def main() -> None:
        policy = PoolPolicy(retries=RetryPolicy(attempts=2, budget=0.0, floor=3))
        replicas = [Scripted(name, play=lambda _: failed("connect")) for name in "abcdefghij"]
        async with host_of(*replicas, policy=policy) as host:
            for _ in range(10):
                with pytest.raises(PoolUnavailable):
                    await host.submit("pool", task())
            assert sum(len(replica.tasks) for replica in replicas) == 10 + 3

    run(main())


def test_another_replica_gets_what_is_left_of_the_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = Scripted("a", slots=4), Scripted("b", slots=4)
        for replica in (one, two):
            replica.gate = asyncio.Event()
            replica.play = lambda _: failed("connect")
        async with host_of(one, two) as host:
            submit = asyncio.create_task(host.submit("pool", task(deadline_ms=10_000)))
            await settled()
            first, second = (one, two) if one.tasks else (two, one)
            assert first.gate is not None
            assert second.gate is not None
            await asyncio.sleep(4.0)
            second.play = lambda _: 1
            first.gate.set()
            second.gate.set()
            await (await submit).collect()
            assert first.tasks[0].deadline_ms == 10_000
            assert 5_900 <= second.tasks[0].deadline_ms <= 6_000
            assert loop.time() < 1010

    run(main())


def test_the_breaker_takes_out_who_fails_alone_and_all_where_all_do() -> None:
    async def main() -> None:
        gone = failed("reset", processed="unknown")
        replicas = [Scripted(name) for name in "abc"]
        replicas[0].play = lambda _: gone
        async with host_of(*replicas) as host:
            for _ in range(100):
                with contextlib.suppress(WorkerReset):
                    await (await host.submit("pool", task())).collect()
            # Five in a row, and from then on the others have it all.
            assert len(replicas[0].tasks) == 5
            assert sum(len(replica.tasks) for replica in replicas) == 100
            assert (await host.health("pool")).ready
            for replica in replicas:
                replica.play = lambda _: gone
            for _ in range(100):
                with contextlib.suppress(WorkerReset, PoolUnavailable):
                    await host.submit("pool", task())
            health = await host.health("pool")
            assert [one.breaker for one in health.replicas] == ["open"] * 3
            with pytest.raises(PoolUnavailable) as refused:
                await host.submit("pool", task())
            assert refused.value.detail == "circuit_open"

    run(main())


@pytest.mark.parametrize("returns", [False, True], ids=["raises", "returns None"])
def test_what_an_adapter_breaks_is_an_internal_error_and_opens_the_breaker(returns: bool) -> None:
    def fault(_: object) -> int:
        raise KeyError("a canary prompt nobody may see")

    async def nothing(*_: object, **__: object) -> None:
        return None

    async def main() -> None:
        one = Scripted("a", play=fault)
        if returns:
            one.submit = nothing  # type: ignore[method-assign, assignment]
        log, metrics = Log(), Metrics()
        async with host_of(one, observers=[log], metrics=metrics) as host:
            for _ in range(5):
                given = task()
                with pytest.raises(InternalError) as caught:
                    await host.submit("pool", given)
                error = caught.value
                assert (error.detail, error.phase, error.retriable) == ("internal", "head", False)
                assert (error.processed, error.engine) == ("unknown", "llamacpp")
                assert error.correlation_id is not None
                assert "canary" not in f"{error!r} {error}"
                assert isinstance(error.__cause__, TypeError if returns else KeyError)
                # It is in the books no longer.
                assert not (await host.cancel("pool", given.task_id)).sent
            assert (await host.health("pool")).in_flight == 0
            assert log.actions("error", "breaker") == [
                *[("error", "a", "fault")] * 4,
                ("breaker", "a", "open"),
                ("error", "a", "fault"),
            ]
            (counted,) = [
                line
                for line in metrics.render().splitlines()
                if 'error_kind="Internal"' in line or 'kind="Internal"' in line
            ]
            assert counted.split()[-1] in {"5", "5.0"}
            with pytest.raises(PoolUnavailable) as refused:
                await host.submit("pool", task())
            assert refused.value.detail == "circuit_open"

    run(main())


def breaking(returns: bool) -> Any:
    """A cancel of an adapter that raises what is no WorkerError, or returns no receipt."""

    async def cancel(*_: object, **__: object) -> None:
        if not returns:
            raise KeyError("a canary prompt nobody may see")

    return cancel


def assert_broken(error: InternalError, broken: Scripted) -> None:
    assert (error.code, error.detail, error.phase) == ("INTERNAL", "internal", "cancel")
    assert (error.retriable, error.engine) == (False, broken.engine)
    assert error.correlation_id in {context.correlation_id for context in broken.contexts}
    assert error.message == f"the adapter broke: {type(error.__cause__).__name__}"


@pytest.mark.parametrize("returns", [False, True], ids=["raises", "returns None"])
def test_what_an_adapter_breaks_in_a_cancel_is_an_internal_error(returns: bool) -> None:
    async def main() -> None:
        one, log = Scripted("a", play=left_open), Log()
        async with host_of(one, observers=[log]) as host:
            given = task()
            stream = await host.submit("pool", given)
            mended, one.cancel = one.cancel, breaking(returns)  # type: ignore[method-assign]
            with pytest.raises(InternalError) as caught:
                await host.cancel("pool", given.task_id)
            assert_broken(caught.value, one)
            assert log.actions("cancel") == [("cancel", "a", None)]
            # It is where it was, and can be cancelled yet.
            one.cancel = mended  # type: ignore[method-assign]
            assert (await host.cancel("pool", given.task_id)).sent
            assert await kinds(stream) == ["end"]

    run(main())


@pytest.mark.parametrize("returns", [False, True], ids=["raises", "returns None"])
def test_what_an_adapter_breaks_in_a_drain_is_an_internal_error(returns: bool) -> None:
    async def main() -> None:
        ill, well, log = Scripted("a", play=left_open), Scripted("b", play=left_open), Log()
        async with host_of(ill, well, observers=[log]) as host:
            streams = [await host.submit("pool", task()) for _ in range(8)]
            assert len(ill.bodies) + len(well.bodies) == 8
            mended, ill.cancel = ill.cancel, breaking(returns)  # type: ignore[method-assign]
            with pytest.raises(InternalError) as caught:
                await host.drain("pool", deadline_ms=10)
            assert_broken(caught.value, ill)
            # The other replica has been drained meanwhile.
            assert log.actions("drained") == [("drained", "b", None)]
            assert sorted(well.cancelled) == sorted(well.bodies)
            ill.cancel = mended  # type: ignore[method-assign]
        for stream in streams:
            assert await kinds(stream) == ["end"]

    run(main())


def test_a_closed_host_takes_nothing() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        host = host_of(one)
        async with host:
            stream = await host.submit("pool", task())
        assert [event.finish_reason async for event in stream if event.is_terminal] == ["cancelled"]
        with pytest.raises(InternalError) as caught:
            await host.submit("pool", task())
        assert caught.value.detail == "closed"
        with pytest.raises(RuntimeError, match="closed"):
            host.bind(Scripted("b"))
        await host.aclose()

    run(main())


def test_a_host_belongs_to_one_loop() -> None:
    host = AdapterHost()

    async def use() -> None:
        await host.probe()

    run(use())
    with pytest.raises(RuntimeError, match="another event loop"):
        run(use())


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.bind(Scripted("b")),
        lambda host: host.rebind(Scripted("a")),
        lambda host: host.unbind("pool", "a"),
        lambda host: host.forget("empty"),
        lambda host: host.configure("pool", PoolPolicy()),
        lambda host: host.set_admission("pool", "shed"),
        lambda host: host.observe(Log()),
        lambda host: host.set_probes(ProbePolicy()),
    ],
    ids=["bind", "rebind", "unbind", "forget", "configure", "admission", "observe", "probes"],
)
def test_a_host_is_changed_in_its_own_loop(change: Callable[[AdapterHost], None]) -> None:
    host = AdapterHost(pools={"empty": PoolPolicy()})
    # Before it has one, anywhere.
    host.bind(Scripted("a"))

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            change(host)
        with pytest.raises(RuntimeError, match="another event loop"):
            await host.cancel("pool", uuid4())

    async def main() -> None:
        async with host:
            before = host.registry.snapshot
            await asyncio.to_thread(run, elsewhere())
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(change, host)
            assert host.registry.snapshot is before
            assert (await host.health("pool")).decision == "admit"
            change(host)

    asyncio.run(main())


def test_a_host_is_closed_in_its_own_loop() -> None:
    one = Scripted("a", play=left_open)
    host = AdapterHost()
    host.bind(one)

    async def main() -> None:
        async with host:
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(run, host.aclose())
            assert not host.is_closed
            stream = await host.submit("pool", task())
            assert not is_closed(one)
        assert is_closed(one)
        assert await kinds(stream) == ["end"]
        # There is nothing left to do anywhere.
        await asyncio.to_thread(run, host.aclose())

    asyncio.run(main())


def test_probes_can_be_others_at_any_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one = Scripted("a")
        host = host_of(one, probes=ProbePolicy(interval=3600.0))
        host.set_probes(ProbePolicy(interval=1800.0))  # before there is a loop to probe in
        async with host:
            await host.probe()
            began, before = loop.time(), one.probes
            host.set_probes(ProbePolicy(interval=10.0))
            await asyncio.sleep(95.0)
            # Ten at the interval, those that draw a tenth less come to eleven.
            assert 10 <= one.probes - before <= 11
            host.set_probes(ProbePolicy(interval=3600.0))
            await asyncio.sleep(0.0)
            before = one.probes
            await asyncio.sleep(3000.0)
            # Nobody goes on as before beside it.
            assert one.probes - before <= 1
            assert loop.time() - began > 3000.0
            with pytest.raises(ValueError, match="policy must be a ProbePolicy"):
                host.set_probes(None)  # type: ignore[arg-type]

    run(main())


# Cancelling.


def test_a_stream_is_cancelled_by_pool_and_id() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        async with host_of(one) as host:
            given = task()
            stream = await host.submit("pool", given)
            one.bodies[given.task_id].say("x")
            assert not (await host.cancel("other", given.task_id)).sent
            assert (await host.cancel("pool", str(given.task_id))).sent
            assert not (await host.cancel("pool", given.task_id)).sent
            assert await kinds(stream) == ["end"]
            assert not (await host.cancel("pool", uuid4())).sent
            assert not (await host.cancel("pool", "no id")).sent
            with pytest.raises(ValueError, match="confirm_within_ms"):
                await host.cancel("pool", given.task_id, -1)

    run(main())


def test_a_submit_that_waits_for_its_answer_is_cancelled() -> None:
    async def main() -> None:
        one = Scripted("a")
        one.gate = asyncio.Event()
        async with host_of(one) as host:
            given = task()
            submit = asyncio.create_task(host.submit("pool", given))
            await settled()
            assert (await host.cancel("pool", given.task_id)).sent
            assert await kinds(await submit) == ["end"]
            assert host._dispatcher.tickets == {}

    run(main())


def test_a_cancelled_submit_leaves_nothing_behind() -> None:
    async def main() -> None:
        one = Scripted("a")
        one.gate = asyncio.Event()
        async with host_of(one) as host:
            submit = asyncio.create_task(host.submit("pool", task()))
            await settled()
            submit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submit
            assert (await host.health("pool")).in_flight == 0
            assert host._dispatcher.tickets == {}

    run(main())


# Leaving.


def test_a_drain_waits_for_what_runs_and_takes_nothing_new() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        log = Log()
        async with host_of(one, observers=[log]) as host:
            given = task()
            stream = await host.submit("pool", given)
            draining = asyncio.create_task(host.drain("pool", deadline_ms=5000))
            await settled()
            with pytest.raises(PoolUnavailable) as caught:
                await host.submit("pool", task())
            assert (caught.value.code, caught.value.detail) == ("POOL_UNREADY", "draining")
            health = await host.health("pool")
            assert (health.live, health.ready, health.reason) == (True, False, "draining")
            await asyncio.sleep(1.0)
            one.bodies[given.task_id].finish()
            assert await kinds(stream) == ["started", "end"]
            receipt = await draining
            assert (receipt.replicas, receipt.finished, receipt.aborted) == (("a",), 1, 0)
            assert 1000 <= receipt.elapsed_ms < 1100
            assert log.actions("drain", "drained") == [("drain", "a", None), ("drained", "a", None)]
            assert not is_closed(one)

    run(main())


def test_a_drain_that_is_over_ends_what_is_left() -> None:
    async def main() -> None:
        one, two = Scripted("a", play=left_open), Scripted("b", play=left_open)
        async with host_of(one, two) as host:
            given = [task() for _ in range(4)]
            streams = [await host.submit("pool", each) for each in given]
            for replica in (one, two):
                replica.gate = asyncio.Event()
            waiting = asyncio.create_task(host.submit("pool", task()))
            await settled()
            (one if given[0].task_id in one.bodies else two).bodies[given[0].task_id].finish()
            assert await kinds(streams[0]) == ["started", "end"]
            receipt = await host.drain("pool", deadline_ms=2000)
            assert set(receipt.replicas) == {"a", "b"}
            assert (receipt.finished, receipt.aborted) == (0, 4)
            assert 2000 <= receipt.elapsed_ms < 2100
            for stream in streams[1:]:
                events = [event async for event in stream]
                assert events[-1].finish_reason == "cancelled"
            with pytest.raises(PoolUnavailable) as caught:
                await waiting
            assert (caught.value.detail, caught.value.retriable) == ("draining", True)
            assert (caught.value.phase, caught.value.processed) == ("drain", "unknown")

    run(main())


def test_one_replica_is_drained_and_the_other_goes_on() -> None:
    async def main() -> None:
        one, two = Scripted("a"), Scripted("b")
        async with host_of(one, two) as host:
            assert (await host.drain("pool", "a", deadline_ms=0)).aborted == 0
            for _ in range(5):
                await (await host.submit("pool", task())).collect()
            assert (len(one.tasks), len(two.tasks)) == (0, 5)
            host.rebind(Scripted("a"))
            with pytest.raises(ValueError, match="deadline_ms"):
                await host.drain("pool", deadline_ms=-1)
            with pytest.raises(ValueError, match="nothing is bound"):
                await host.drain("pool", "z", deadline_ms=0)

    run(main())


def test_what_was_not_answered_fails_at_once_when_its_replica_is_unbound() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one = Scripted("a", play=left_open)
        async with host_of(one) as host:
            running = await host.submit("pool", given := task())
            one.gate = asyncio.Event()
            waiting = [asyncio.create_task(host.submit("pool", task())) for _ in range(3)]
            await settled()
            began = loop.time()
            host.unbind("pool", "a")
            for submit in waiting:
                with pytest.raises(PoolUnavailable) as caught:
                    await submit
                assert caught.value.retriable
            assert loop.time() == began
            # A stream goes on.
            assert not is_closed(one)
            one.bodies[given.task_id].finish()
            assert await kinds(running) == ["started", "end"]
            await settled()
            assert is_closed(one)

    run(main())


# What is known of replicas.


def test_a_replica_that_is_not_ready_gets_nothing() -> None:
    async def main() -> None:
        one, two = Scripted("a"), Scripted("b")
        one.state = LOADING
        async with host_of(one, two) as host:
            await host.probe()
            for _ in range(4):
                await (await host.submit("pool", task())).collect()
            assert (len(one.tasks), len(two.tasks)) == (0, 4)
            two.state = LOADING
            await host.probe("pool")
            with pytest.raises(PoolUnavailable) as caught:
                await host.submit("pool", task())
            assert (caught.value.code, caught.value.detail) == ("POOL_UNREADY", "loading")
            assert caught.value.retry_after_ms is not None
            two.state = GONE
            one.state = GONE
            await host.probe()
            with pytest.raises(PoolUnavailable) as gone:
                await host.submit("pool", task())
            assert (gone.value.code, gone.value.detail) == ("POOL_UNAVAILABLE", "unavailable")
            health = await host.health("pool")
            assert (health.live, health.ready, health.reason) == (False, False, "connect")

    run(main())


def test_readiness_follows_the_probes() -> None:
    async def main() -> None:
        one = Scripted("a")
        one.state = LOADING
        log = Log()
        probes = ProbePolicy(interval=2.0, timeout=1.0)
        async with host_of(one, probes=probes, observers=[log]) as host:
            await asyncio.sleep(1.0)
            assert not (await host.health("pool")).ready
            one.state = READY
            await asyncio.sleep(2.0)
            assert (await host.health("pool")).ready
            one.state = GONE
            await asyncio.sleep(2.0)
            assert not (await host.health("pool")).ready
            assert log.actions("ready", "unready") == [
                ("unready", "a", "loading"),
                ("ready", "a", None),
                ("unready", "a", "connect"),
            ]
            before = one.probes
            await asyncio.sleep(20.0)
            assert 9 <= one.probes - before <= 12

    run(main())


def test_a_probe_is_bounded_and_a_busy_replica_is_given_patience() -> None:
    async def main() -> None:
        one, two = Scripted("a", play=left_open), Scripted("b")
        probes = ProbePolicy(interval=2.0, timeout=1.0)
        async with host_of(one, two, probes=probes) as host:
            await host.drain("pool", "b", deadline_ms=0)
            stream = await host.submit("pool", task())
            await host.probe()
            one.stalls = two.stalls = True
            began = asyncio.get_running_loop().time()
            await host.probe()
            assert asyncio.get_running_loop().time() - began == pytest.approx(1.0, abs=0.05)
            found = {one.replica_id: one for one in (await host.health("pool")).replicas}
            assert found["a"].ready
            assert not found["b"].live
            await asyncio.sleep(12.0)
            assert not (await host.health("pool")).live
            await stream.aclose()

    run(main())


def test_an_adapter_that_raises_when_probed_is_not_ready() -> None:
    class Broken(Scripted):
        async def health(self, **_: object) -> None:  # type: ignore[override]
            raise LookupError

    async def main() -> None:
        async with host_of(Broken("a")) as host:
            health = await host.health("pool")
            assert (health.live, health.ready, health.reason) == (False, False, "internal")

    run(main())


def test_props_are_summed_where_everybody_tells() -> None:
    async def main() -> None:
        one, two = Scripted("a", slots=4), Scripted("b", slots=2)
        two.slots_free = 1
        async with host_of(one, two) as host:
            props = await host.props("pool")
            assert (props.slots_total, props.slots_free, props.source) == (6, 5, "/props")
            assert props.age_ms == 0
            host.bind(Scripted("c"))
            props = await host.props("pool")
            assert (props.slots_total, props.slots_free) == (None, None)
            with pytest.raises(AdapterError):
                await host.props("nowhere")

    run(main())


def test_capabilities_of_those_that_tell() -> None:
    async def main() -> None:
        one, two = Scripted("a", slots=4), Scripted("b", "other")
        two.state = GONE
        async with host_of(one, two) as host:
            told = await host.capabilities()
            assert told.api_version == "1"
            (document,) = told.adapters
            assert (document.pool_id, document.replica_id, document.slots_total) == ("pool", "a", 4)
            assert document.engine_version == "b1-scripted"
            assert told.silent == ("other/b",)
            assert "silent" in told.model_dump(mode="json")

    run(main())


def test_capabilities_that_raise_silence_one_replica_alone() -> None:
    async def broken(**_: object) -> AdapterCapabilities:
        raise KeyError("slots")

    async def main() -> None:
        one, two = Scripted("a"), Scripted("b")
        two.capabilities = broken  # type: ignore[method-assign]
        async with host_of(one, two) as host:
            told = await host.capabilities()
            assert [document.replica_id for document in told.adapters] == ["a"]
            assert told.silent == ("pool/b",)

    run(main())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"policy": 3}, "policy must be a PoolPolicy, not int"),
        ({"pools": {"chat": 3}}, "policy must be a PoolPolicy"),
        ({"pools": {"": PoolPolicy()}}, "pool_id must not be empty"),
        ({"pools": {3: PoolPolicy()}}, "pool_id must be a str, not int"),
        ({"probes": 3}, "probes must be a ProbePolicy"),
        ({"observers": [3]}, "an observer must be callable"),
        ({"logs": 3}, "logs must be a Logs"),
        ({"metrics": 3}, "metrics must be a Metrics"),
    ],
)
def test_a_host_of_something_else_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdapterHost(**arguments)


@pytest.mark.parametrize("name", ["", 3])
@pytest.mark.parametrize("which", ["pool_id", "replica_id"])
def test_an_adapter_without_a_name_is_not_bound(which: str, name: Any) -> None:
    host, one = AdapterHost(), Scripted("a")
    setattr(one, which, name)
    with pytest.raises(ValueError, match=f"{which} must"):
        host.bind(one)
    assert not host.registry.snapshot


def test_an_observer_that_raises_harms_nobody() -> None:
    class Angry(Log):
        def __call__(self, event: HostEvent) -> None:
            raise KeyError(event.action)

    async def main() -> None:
        log = Log()
        async with host_of(Scripted("a"), observers=[Angry()]) as host:
            host.observe(log)
            await (await host.submit("pool", task())).collect()
            assert [event.action for event in log.events if event.task is not None] == [
                "submit", "start", "end",
            ]  # fmt: skip
            assert host._observers.failures >= 4

    run(main())


def test_nothing_of_the_task_shows() -> None:
    async def main() -> None:
        log = Log()
        async with host_of(Scripted("a"), observers=[log]) as host:
            await (await host.submit("pool", task())).collect()
            shown = [repr(host), *(repr(event) for event in log.events)]
            assert not [text for text in shown if "canary" in text]

    run(main())


def test_the_same_seed_makes_the_same_choices() -> None:
    async def main(seed: int) -> list[int]:
        replicas = [Scripted(str(number)) for number in range(5)]
        draws = random.Random(3)
        async with host_of(*replicas, seed=seed) as host:
            for _ in range(50):
                stream = await host.submit("pool", task())
                if draws.random() < 0.8:
                    await stream.collect()
        return [len(replica.tasks) for replica in replicas]

    assert run(main(1)) == run(main(1))
    assert run(main(1)) != run(main(2))


def test_an_adapter_that_cannot_be_closed_is_left_and_told_of() -> None:
    class Stuck(Scripted):
        async def aclose(self) -> None:
            raise OSError(5, "a canary")

    class Silent(Scripted):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        log = Log()
        async with host_of(Stuck("a"), Silent("b"), observers=[log]) as host:
            host.rebind(Scripted("a"))
            host.unbind("pool", "b")
            await asyncio.sleep(11.0)
        assert set(log.actions("closed")) == {
            ("closed", "a", "OSError"),
            ("closed", "b", "TimeoutError"),
            ("closed", "a", None),
        }

    run(main())


def test_pools_replicas_and_observers_have_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_POOLS", 2)
    monkeypatch.setattr(registry, "MAX_REPLICAS", 3)

    async def main() -> None:
        async with host_of(*(Scripted(name) for name in "abc")) as host:
            with pytest.raises(ValueError, match="at most 3 replicas"):
                host.bind(Scripted("d"))
            host.rebind(Scripted("c"))
            host.bind(Scripted("a", "other"))
            with pytest.raises(ValueError, match="at most 2 pools"):
                host.configure("third", PoolPolicy())
            host.unbind("other", "a")
            host.forget("other")
            host.configure("third", PoolPolicy())
            for _ in range(MAX_OBSERVERS):
                host.observe(Log())
            with pytest.raises(ValueError, match="at most 64 observers"):
                host.observe(Log())
            with pytest.raises(ValueError, match="deadline_ms"):
                await host.drain("pool", deadline_ms=MAX_DRAIN_MS + 1)
            assert (await host.drain("third", deadline_ms=MAX_DRAIN_MS)).replicas == ()

    run(main())
