"""The handshake, with a reference orchestrator."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.unit.discovery.orchestrator import HEARTBEAT, TOKEN, Orchestrator
from tests.unit.virtual_time import run
from worker_adapters import RetryPolicy
from worker_adapters.discovery import (
    Health,
    ReadinessRecord,
    Registrar,
    Registration,
    RegistrationError,
    identity_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def record(replica_id: str = "a", **changes: Any) -> ReadinessRecord:
    fields: dict[str, Any] = {
        "pool_id": "chat",
        "replica_id": replica_id,
        "health": Health(live=True, ready=True),
        "last_heartbeat_ms": 1,
        "engine": "llamacpp",
        "active_leases": 0,
        **changes,
    }
    return ReadinessRecord(**fields)


def handshake(
    main: Callable[[Orchestrator, Registrar, list[ReadinessRecord]], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """Run it on virtual time, with an orchestrator and a registrar of one replica."""

    async def whole() -> None:
        told = [record()]

        async def records() -> list[ReadinessRecord]:
            return told

        given: dict[str, Any] = {
            "token": TOKEN,
            "rng": random.Random(1),
            "clock": asyncio.get_running_loop().time,
            **options,
        }
        async with Orchestrator() as orchestrator:
            registrar = Registrar(orchestrator.url, records=records, **given)
            try:
                await main(orchestrator, registrar, told)
            finally:
                await registrar.aclose()

    run(whole())


def test_a_registration() -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        made = await registrar.register("chat", "a")
        assert (made.pool_id, made.replica_id) == ("chat", "a")
        assert made.identity == identity_of(TOKEN)
        (request,) = orchestrator.received("/v1/workers/register")
        assert request.json == {"pool_id": "chat", "replica_id": "a"}
        assert request.headers["authorization"] == f"Bearer {TOKEN}"

    handshake(main)


def test_a_wrong_token_is_told_and_not_shown() -> None:
    async def main(
        _orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        with pytest.raises(RegistrationError) as caught:
            await registrar.register("chat", "a")
        error = caught.value
        assert (error.detail, error.status, error.code) == ("bad_token", 401, 40102)
        assert "another-token" not in f"{error!r} {error} {registrar!r} {vars(registrar)}"

    handshake(main, token="another-token")


@pytest.mark.parametrize(
    ("lie", "detail"),
    [
        ({"identity": "token:000000"}, "identity"),
        ({"identity": "\ud800"}, "identity"),
        ({"identity": "\u00fc"}, "identity"),
        ({"pool_id": "\ud800"}, "mismatch"),
        ({"identity": None}, "bad_answer"),
        ({"ok": False}, "bad_answer"),
        ({"pool_id": "other"}, "mismatch"),
    ],
)
def test_an_orchestrator_that_has_it_wrong(lie: dict[str, Any], detail: str) -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        orchestrator.lying = lie
        with pytest.raises(RegistrationError) as caught:
            await registrar.register("chat", "a")
        assert caught.value.detail == detail

    handshake(main)


@pytest.mark.parametrize(
    ("refusal", "detail", "code"),
    [
        ((401, {"code": 40101}), "missing_token", 40101),
        ((401, {"code": True}), "status", None),
        ((503, {}), "status", None),
        ((302, {}), "status", None),
    ],
)
def test_a_refusal(refusal: tuple[int, dict[str, Any]], detail: str, code: int | None) -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        orchestrator.refusing = refusal
        with pytest.raises(RegistrationError) as caught:
            await registrar.register("chat", "a")
        assert (caught.value.detail, caught.value.code) == (detail, code)

    handshake(main)


def test_records_are_pushed_and_a_restart_is_noticed() -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, told: list[ReadinessRecord]
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        running = asyncio.create_task(registrar.run())
        await asyncio.sleep(1)
        assert orchestrator.workers["chat", "a"] == told[0].model_dump(mode="json")
        told[0] = record(active_leases=3)
        await asyncio.sleep(5)
        known = orchestrator.workers["chat", "a"]
        assert known is not None
        assert known["active_leases"] == 3
        assert orchestrator.registrations == 1
        orchestrator.restart()
        await asyncio.sleep(5)
        # One beat that it did not know, then both at once.
        assert orchestrator.registrations == 2
        assert orchestrator.workers["chat", "a"] is not None
        assert loop.time() - began < 12
        # Another replica comes, the first one goes.
        told[:] = [record("b")]
        await asyncio.sleep(5)
        assert [one.replica_id for one in registrar.registered] == ["b"]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    handshake(main, push_path=HEARTBEAT)


def test_without_a_push_it_registers_again_in_every_round() -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        running = asyncio.create_task(registrar.run())
        await asyncio.sleep(1)
        orchestrator.restart()
        await asyncio.sleep(5)
        assert orchestrator.workers == {("chat", "a"): None}
        running.cancel()

    handshake(main)


def test_it_backs_off_with_full_jitter() -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        orchestrator.refusing = (503, {})
        loop = asyncio.get_running_loop()
        pauses = []
        for _ in range(12):
            due = await registrar.round()
            pauses.append(due - loop.time())
            await asyncio.sleep(pauses[-1])
        # Drawn from 0 to min(8, 0.5 * 2**n).
        drawn = random.Random(1)
        bounds = [min(8.0, 0.5 * 2.0**number) for number in range(12)]
        wanted = [drawn.uniform(0.0, bound) for bound in bounds]
        assert pauses == pytest.approx(wanted, abs=0.05)
        assert registrar.errors["chat", "a"].detail == "status"
        orchestrator.refusing = None
        await asyncio.sleep(10)
        await registrar.round()
        assert registrar.errors == {}
        assert len(registrar.registered) == 1

    handshake(main, backoff=RetryPolicy(base=0.5, cap=8.0))


def test_an_orchestrator_that_is_not_there() -> None:
    async def main() -> None:
        async def records() -> list[ReadinessRecord]:
            return [record()]

        clock = asyncio.get_running_loop().time
        registrar = Registrar("http://127.0.0.1:9", token=TOKEN, records=records, clock=clock)
        await registrar.round()
        assert registrar.errors["chat", "a"].detail == "connect"
        assert registrar.registered == ()
        await registrar.aclose()

    run(main())


def test_a_key_that_cannot_be_had() -> None:
    def token() -> str:
        raise RuntimeError("the-secret-itself")

    async def main(
        _orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        with pytest.raises(RegistrationError) as caught:
            await registrar.register("chat", "a")
        assert caught.value.detail == "token"
        assert caught.value.__context__ is None

    handshake(main, token=token)


def test_a_token_is_asked_for_once_and_called_as_it_was_sent() -> None:
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        if asked % 2 == 0:
            raise OSError("the-secret-itself")
        return TOKEN

    async def main(
        _orchestrator: Orchestrator, registrar: Registrar, _told: list[ReadinessRecord]
    ) -> None:
        made = await registrar.register("chat", "a")
        assert made.identity == identity_of(TOKEN)
        assert asked == 1
        with pytest.raises(RegistrationError, match="token"):
            await registrar.register("chat", "a")
        assert (await registrar.register("chat", "a")).identity == identity_of(TOKEN)

    handshake(main, token=token)


def test_nothing_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(
        orchestrator: Orchestrator, registrar: Registrar, told: list[ReadinessRecord]
    ) -> None:
        told.append(record("b"))
        whole = Registrar.register

        async def register(self: Registrar, pool_id: str, replica_id: str) -> Registration:
            if replica_id == "a":
                raise KeyError("the-secret-itself")
            return await whole(self, pool_id, replica_id)

        orchestrator.lying = {"identity": "\ud800"}
        running = asyncio.create_task(registrar.run())
        await asyncio.sleep(5)
        assert {error.detail for error in registrar.errors.values()} == {"identity"}
        orchestrator.lying = {}
        monkeypatch.setattr(Registrar, "register", register)
        await asyncio.sleep(60)
        assert not running.done()
        assert [one.replica_id for one in registrar.registered] == ["b"]
        error = registrar.errors["chat", "a"]
        assert error.detail == "internal"
        assert error.__context__ is None
        monkeypatch.setattr(Registrar, "register", whole)
        await asyncio.sleep(60)
        assert len(registrar.registered) == 2
        assert registrar.errors == {}
        running.cancel()

    handshake(main)


@pytest.mark.parametrize("kind", ["raises", "hangs", "is no list"])
def test_records_that_cannot_be_had_are_waited_for(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        is_well = False

        async def records() -> list[ReadinessRecord]:
            if is_well:
                return [record()]
            match kind:
                case "raises":
                    raise KeyError("the-secret-itself")
                case "hangs":
                    await asyncio.Event().wait()
            nothing: Any = None
            return cast("list[ReadinessRecord]", nothing)

        loop = asyncio.get_running_loop()
        async with Orchestrator() as orchestrator:
            registrar = Registrar(
                orchestrator.url,
                token=TOKEN,
                records=records,
                clock=loop.time,
                rng=random.Random(1),
            )
            running = asyncio.create_task(registrar.run())
            await asyncio.sleep(200)
            assert not running.done()
            is_well = True
            await asyncio.sleep(100)
            assert len(registrar.registered) == 1
            running.cancel()
            await registrar.aclose()

    run(main())
    lines = [line.getMessage() for line in caplog.records if "no records" in line.getMessage()]
    assert len(lines) == 1
    assert "secret" not in lines[0]


def test_values_that_are_none() -> None:
    async def records() -> list[ReadinessRecord]:
        return []

    for changes in ({"interval": 0}, {"push_path": "no path"}, {"token": "short"}):
        given: dict[str, Any] = {"token": TOKEN, **changes}
        with pytest.raises(ValueError, match=r"interval|push_path|api_key"):
            Registrar("http://h", records=records, **given)
    with pytest.raises(ValueError, match="push_path"):
        run(Registrar("http://h", token=TOKEN, records=records).push(record()))
