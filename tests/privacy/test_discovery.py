"""A registrar whose token is a canary, of a host that has the prompt of its tasks quoted at it."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Final

import pytest

from tests.privacy.shown import KEY, PROMPT
from tests.unit.tasks import task
from worker_adapters import LlamaCppAdapter, RetryPolicy, WorkerError
from worker_adapters.discovery import (
    AuthError,
    BearerAuth,
    Readiness,
    Registrar,
    RegistrationError,
    identity_of,
)
from worker_adapters.host import AdapterHost
from worker_adapters.testing.wire import RawServer, response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.privacy.shown import Shown
    from worker_adapters.discovery import ReadinessRecord
    from worker_adapters.testing.wire import Connection, Received

PUSH: Final = "/v1/workers/heartbeat"


def quoted(request: Received) -> str:
    return f"{request.headers} {request.body.decode()} {KEY}"


ORCHESTRATORS: Final[dict[str, Callable[[Received], bytes]]] = {
    "welcoming": lambda request: response(
        json.dumps({**request.json, "ok": True, "identity": identity_of(KEY)}),
        "200 OK",
        "application/json",
    ),
    "refusing": lambda request: response(
        json.dumps({"code": 40102, "message": quoted(request)}), "401 No", "application/json"
    ),
    "lying": lambda request: response(
        json.dumps({**request.json, "ok": True, "identity": quoted(request)}),
        "200 OK",
        "application/json",
    ),
    "confused": lambda _: response(
        json.dumps({"ok": True, "identity": KEY, "pool_id": KEY, "replica_id": PROMPT}),
        "200 OK",
        "application/json",
    ),
    "broken": lambda request: response(f"<h1>{quoted(request)}</h1>", "500 Oops", "text/html"),
    "elsewhere": lambda request: (
        f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/?token={KEY}\r\n"
        f"X-Quoted: {request.headers.get('authorization')}\r\nContent-Length: 0\r\n\r\n"
    ).encode(),
    "mad": lambda request: quoted(request).encode(),
}
"""What an orchestrator makes of a registration."""


@pytest.mark.parametrize("how", ORCHESTRATORS)
async def test_a_registrar(how: str, shown: Shown) -> None:
    async def quote(connection: Connection) -> None:
        while True:
            request = await connection.request()
            body = f"{request.body.decode()} {KEY}"
            await connection.send(response(body, "500 Oops", "text/plain"))

    async def play(connection: Connection) -> None:
        while True:
            await connection.send(ORCHESTRATORS[how](await connection.request()))
            if how == "mad":
                connection.close()
                return

    async with (
        RawServer(quote) as engine,
        RawServer(play) as orchestrator,
        AdapterHost(logs=shown.logs, metrics=shown.metrics) as host,
    ):
        once = RetryPolicy(attempts=1)
        host.bind(
            LlamaCppAdapter(engine.url, pool_id="chat", replica_id="a", api_key=KEY, retries=once)
        )
        readiness = Readiness(host)
        with pytest.raises(WorkerError) as failed:
            await host.submit("chat", task(prompt=PROMPT))
        shown.add_error(failed.value)
        registrar = Registrar(
            orchestrator.url,
            token=KEY,
            records=readiness.records,
            push_path=PUSH,
            rng=random.Random(1),
        )
        shown.add(registrar, vars(registrar), readiness, *await readiness.records())
        await registrar.round()
        shown.add_tasks()
        for error in registrar.errors.values():
            shown.add_error(error)
        try:
            shown.add(await registrar.register("chat", "a"))
        except RegistrationError as error:
            shown.add_error(error)
        shown.add(registrar, registrar.registered, registrar.errors, vars(registrar))
        await registrar.aclose()
    assert bool(registrar.registered) == (how == "welcoming")
    assert shown.errors == (1 if how == "welcoming" else 3)


async def nobody(connection: Connection) -> None:
    await connection.until_closed()


async def test_what_a_registrar_is_given_breaks(shown: Shown) -> None:
    def token() -> str:
        raise LookupError(f"no token but {KEY}")

    async def records() -> Iterable[ReadinessRecord]:
        raise LookupError(f"{PROMPT} {KEY}")

    async with RawServer(nobody) as orchestrator:
        registrar = Registrar(orchestrator.url, token=token, records=records)
        await registrar.round()
        with pytest.raises(RegistrationError) as caught:
            await registrar.register("chat", "a")
        shown.add_error(caught.value)
        shown.add(registrar, vars(registrar))
        await registrar.aclose()
    for bad in (f"{KEY}\r\nX: y", f"{KEY}\udcff", ""):
        with pytest.raises(ValueError, match="key") as refused:
            Registrar("http://127.0.0.1:9", token=bad, records=records)
        shown.add_error(refused.value)
    assert shown.errors == 4


async def test_who_checks_a_token(shown: Shown) -> None:
    auth = BearerAuth([KEY])
    shown.add(auth, vars(auth), auth.check(f"Bearer {KEY}"))
    for header in (None, KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY} {KEY}"):
        with pytest.raises(AuthError) as caught:
            auth.check(header)
        shown.add_error(caught.value)
        shown.add(caught.value.body)
    for tokens in (f"{KEY} ", [KEY, ""], [KEY, KEY.encode()]):
        with pytest.raises((ValueError, TypeError)) as refused:
            BearerAuth(tokens)  # type: ignore[arg-type]
        shown.add_error(refused.value)
    assert shown.errors == 8
