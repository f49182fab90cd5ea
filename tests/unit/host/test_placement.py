"""What a task's placement does: pin, prefer, avoid, devices."""

from __future__ import annotations

import pytest

from tests.unit.host.scripted import GONE, LOADING, Scripted, failed, host_of, task
from tests.unit.virtual_time import run
from worker_adapters import AdapterError, Placement, PoolUnavailable, WorkerError
from worker_adapters.host import AdapterHost, PoolPolicy


def pools(*names: str) -> dict[str, Scripted]:
    return {name: Scripted("0", name) for name in names}


def taken(adapters: dict[str, Scripted]) -> str:
    """Name the one pool that has had a task, and forget it."""
    (name,) = [name for name, adapter in adapters.items() for _ in adapter.tasks]
    for adapter in adapters.values():
        adapter.tasks.clear()
    return name


async def placed(
    host: AdapterHost, adapters: dict[str, Scripted], pool_id: str, **fields: object
) -> str:
    placement = Placement.model_validate(fields)
    await (await host.submit(pool_id, task(placement=placement))).collect()
    return taken(adapters)


async def misplaced(host: AdapterHost, pool_id: str, **fields: object) -> WorkerError:
    placement = Placement.model_validate(fields)
    with pytest.raises(WorkerError) as caught:
        await host.submit(pool_id, task(placement=placement))
    assert caught.value.processed == "no"
    return caught.value


def test_a_pin_decides() -> None:
    async def main() -> None:
        adapters = pools("a", "b")
        async with host_of(*adapters.values()) as host:
            assert await placed(host, adapters, "a", mode="pin", pin_pool_id="b") == "b"
            assert await placed(host, adapters, "nowhere", mode="pin", pin_pool_id="b") == "b"
            # Only where the mode says so.
            assert await placed(host, adapters, "a", mode="auto", pin_pool_id="b") == "a"

    run(main())


def test_a_pin_that_means_nothing_is_invalid() -> None:
    async def main() -> None:
        adapters = pools("a", "b")
        async with host_of(*adapters.values()) as host:
            host.configure("b", PoolPolicy(pinnable=False))
            for pin, fields in (
                ("nowhere", {}),
                ("b", {}),
                ("a", {"avoid_pools": ["a"]}),
            ):
                error = await misplaced(host, "a", mode="pin", pin_pool_id=pin, **fields)
                assert isinstance(error, AdapterError)
                assert (error.code, error.retriable) == ("INVALID_PARAMS", False)
            assert not any(adapter.tasks for adapter in adapters.values())

    run(main())


@pytest.mark.parametrize("state", [LOADING, GONE])
def test_a_pin_to_a_pool_that_is_not_ready_is_refused_whatever_else_is(state: object) -> None:
    async def main() -> None:
        adapters = pools("a", "b")
        adapters["b"].state = state  # type: ignore[assignment]
        async with host_of(*adapters.values()) as host:
            await host.probe()
            # allow_fallback is its default, true: a pin knows no fallback.
            error = await misplaced(host, "a", mode="pin", pin_pool_id="b")
            assert isinstance(error, PoolUnavailable)
            assert (error.code, error.retriable) == ("POOL_UNREADY", True)
            assert not adapters["a"].tasks

    run(main())


def test_a_pinned_task_that_fails_goes_nowhere_else() -> None:
    async def main() -> None:
        adapters = pools("a", "b")
        adapters["b"].play = lambda _: failed("connect")
        async with host_of(*adapters.values()) as host:
            error = await misplaced(host, "a", mode="pin", pin_pool_id="b")
            assert error.detail == "connect"
            assert not adapters["a"].tasks

    run(main())


def test_preferred_pools_come_first_and_then_the_named_one() -> None:
    async def main() -> None:
        adapters = pools("a", "b", "c")
        async with host_of(*adapters.values()) as host:
            prefer = {"mode": "prefer", "prefer_pools": ["nowhere", "b", "c"]}
            assert await placed(host, adapters, "a", **prefer) == "b"
            host.set_admission("b", "shed")
            assert await placed(host, adapters, "a", **prefer) == "c"
            adapters["c"].state = GONE
            await host.probe("c")
            assert await placed(host, adapters, "a", **prefer) == "a"
            error = await misplaced(host, "a", allow_fallback=False, **prefer)
            # What the most wanted one says.
            assert error.code == "ADMISSION_REJECT"
            assert await placed(host, adapters, "a", mode="prefer") == "a"

    run(main())


def test_preferred_pools_that_do_not_exist_and_no_fallback() -> None:
    async def main() -> None:
        adapters = pools("a")
        async with host_of(*adapters.values()) as host:
            error = await misplaced(
                host, "a", mode="prefer", prefer_pools=["x"], allow_fallback=False
            )
            assert error.code == "INVALID_PARAMS"
            assert await placed(host, adapters, "a", mode="prefer", prefer_pools=["x"]) == "a"

    run(main())


def test_avoided_pools_are_the_last_resort_or_none() -> None:
    async def main() -> None:
        adapters = pools("a", "b")
        async with host_of(*adapters.values()) as host:
            avoid = {"mode": "prefer", "prefer_pools": ["b"], "avoid_pools": ["a"]}
            assert await placed(host, adapters, "a", **avoid) == "b"
            host.set_admission("b", "drain")
            assert await placed(host, adapters, "a", **avoid) == "a"
            assert (await misplaced(host, "a", allow_fallback=False, **avoid)).code == (
                "POOL_UNREADY"
            )
            error = await misplaced(host, "a", mode="auto", avoid_pools=["a"], allow_fallback=False)
            assert error.code == "INVALID_PARAMS"
            both = {"mode": "prefer", "prefer_pools": ["b"], "avoid_pools": ["b"]}
            assert await placed(host, adapters, "a", **both) == "a"

    run(main())


def test_required_devices() -> None:
    async def main() -> None:
        plain, special = Scripted("0"), Scripted("1")
        async with host_of(plain) as host:
            host.bind(special, device_mask="gpu0,gpu1")
            for _ in range(5):
                placement = Placement(mode="auto", require_device_mask="gpu0,gpu1")
                await (await host.submit("pool", task(placement=placement))).collect()
            assert (len(plain.tasks), len(special.tasks)) == (0, 5)
            error = await misplaced(host, "pool", mode="auto", require_device_mask="gpu9")
            assert error.code == "INVALID_PARAMS"
            special.state = LOADING
            await host.probe()
            error = await misplaced(host, "pool", mode="auto", require_device_mask="gpu0,gpu1")
            assert (error.code, error.detail) == ("POOL_UNREADY", "loading")

    run(main())


def test_a_task_is_cancelled_by_the_pool_it_was_submitted_to_and_by_that_it_runs_in() -> None:
    async def main() -> None:
        adapters = pools("a", "b", "c")
        adapters["b"].play = lambda _: None
        async with host_of(*adapters.values()) as host:
            for pool_id in ("a", "b"):
                given = task(placement=Placement(mode="pin", pin_pool_id="b"))
                stream = await host.submit("a", given)
                assert not (await host.cancel("c", given.task_id)).sent
                assert (await host.cancel(pool_id, given.task_id)).sent
                assert stream.is_terminal

    run(main())
