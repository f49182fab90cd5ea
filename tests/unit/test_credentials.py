"""Keys: given, from a file, from a function; rotated while the adapter lives; never shown."""

from __future__ import annotations

import logging
import os
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.wire import LAST_CHUNK, PROPS, STREAM_HEAD, answer, final, playing
from worker_adapters import AdapterError, WorkerError
from worker_adapters.engines._credentials import KEPT_KEYS, Credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.wire import Connection
    from worker_adapters.engines._credentials import ApiKey
    from worker_adapters.engines.llamacpp import LlamaCppAdapter

pytestmark = both_transports

KEY = "sk-hunter22-first"
OTHER = "sk-correct-horse-second"


def bearer(credentials: Credentials) -> str:
    [(name, value)] = credentials.headers()
    assert name == b"Authorization"
    return value.decode("ascii").removeprefix("Bearer ")


def leaks(error: BaseException, *secrets: str) -> list[str]:
    """Return the secrets that an error shows in whatever way it can be looked at."""
    seen: list[str] = []
    while True:
        seen += [repr(error), str(error), repr(error.__dict__), repr(error.args)]
        following = error.__cause__ or error.__context__
        if following is None:
            break
        error = following
    return [secret for secret in secrets if any(secret in text for text in seen)]


# Where it comes from.


def test_no_key_is_no_header() -> None:
    assert Credentials(None).headers() == ()
    assert repr(Credentials(None)) == "Credentials(none)"


@pytest.mark.parametrize(
    "source", [KEY, SecretStr(KEY), lambda: KEY, lambda: SecretStr(KEY)], ids=range(4)
)
def test_a_key_as_it_is_given(source: ApiKey) -> None:
    credentials = Credentials(source)
    assert bearer(credentials) == KEY
    assert repr(credentials) == "Credentials(set)"


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n", encoding="utf-8")
    credentials = Credentials(file)
    assert bearer(credentials) == KEY
    stamp = credentials._stamp
    assert bearer(credentials) == KEY
    assert credentials._stamp == stamp
    file.write_text(OTHER, encoding="utf-8")
    assert bearer(credentials) == OTHER


def test_a_file_put_in_the_place_of_another_with_the_same_look(tmp_path: Path) -> None:
    file, following = tmp_path / "key", tmp_path / "next"
    file.write_text("sk-aaaaaa", encoding="utf-8")
    credentials = Credentials(file)
    assert bearer(credentials) == "sk-aaaaaa"
    following.write_text("sk-bbbbbb", encoding="utf-8")
    stamp = file.stat().st_mtime_ns
    following.replace(file)
    os.utime(file, ns=(stamp, stamp))
    assert bearer(credentials) == "sk-bbbbbb"


def test_a_file_that_is_not_finished_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("", encoding="utf-8")
    credentials = Credentials(file)
    for _ in range(2):
        with pytest.raises(ValueError, match="at least 6 characters"):
            credentials.headers()
    file.write_text(KEY, encoding="utf-8")
    assert bearer(credentials) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o601])
def test_a_file_that_others_may_use_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY, encoding="utf-8")
    file.chmod(mode)
    credentials = Credentials(file)
    assert bearer(credentials) == KEY
    file.write_text(OTHER, encoding="utf-8")
    assert bearer(credentials) == OTHER
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("worker_adapters", "WARNING")
    assert f"{file} (0{mode:o})" in record.getMessage()
    assert not [key for key in (KEY, OTHER) if key in caplog.text]


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_its_owner_alone_may_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY, encoding="utf-8")
    file.chmod(mode)
    assert bearer(Credentials(file)) == KEY
    assert not caplog.records


def test_a_function_is_asked_every_time() -> None:
    keys = iter([KEY, OTHER, KEY])
    credentials = Credentials(lambda: next(keys))
    assert [bearer(credentials) for _ in range(3)] == [KEY, OTHER, KEY]


# What is redacted.


def test_old_and_new_keys_stay_redacted() -> None:
    keys = iter([KEY, OTHER])
    credentials = Credentials(lambda: next(keys))
    for _ in range(2):
        credentials.headers()
    shown = credentials.redactor.redact(f"{KEY} and {OTHER}")
    assert KEY not in shown
    assert OTHER not in shown
    assert shown.count("****") == 2


def test_keys_for_redaction_are_bounded() -> None:
    keys = iter([f"sk-key-number-{number:04}" for number in range(KEPT_KEYS + 10)])
    credentials = Credentials(lambda: next(keys))
    for _ in range(KEPT_KEYS + 10):
        credentials.headers()
    assert len(credentials._used) == KEPT_KEYS
    assert "0073" not in credentials.redactor.redact("sk-key-number-0073")


# What cannot be used.


@pytest.mark.parametrize(
    "bad", ["short", " sk-hunter22", "sk-hunter22\n", "sk-hüter-2222", "sk-hunter\x0022"]
)
def test_a_key_that_cannot_be_used_is_refused_at_once(bad: str) -> None:
    for source in (bad, SecretStr(bad)):
        with pytest.raises(ValueError, match="api_key must") as caught:
            adapter("http://127.0.0.1:1", api_key=source)
        assert leaks(caught.value, bad.strip()) == []


def failing(error: Exception) -> Callable[[], str]:
    def source() -> str:
        raise error

    return source


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (lambda: "tiny", "ValueError"),
        (lambda: None, "TypeError"),
        (KEY.encode, "TypeError"),
        (failing(RuntimeError(f"vault said {KEY}")), "RuntimeError"),
        (failing(KeyError(KEY)), "KeyError"),
    ],
)
async def test_a_key_that_cannot_be_had_says_so_and_no_more(
    source: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with adapter("http://127.0.0.1:1", api_key=source) as made:
        for work in (made.submit, lambda _: made.props()):
            with pytest.raises(AdapterError) as caught:
                await work(task())
            error = caught.value
            assert (error.code, error.detail) == ("INVALID_PARAMS", "unauthorized")
            assert (error.processed, error.phase) == ("no", "validate")
            assert error.message == f"the api_key cannot be had ({name})"
            assert leaks(error, KEY, "tiny") == []
            assert KEY not in "".join(traceback.format_exception(error))
        health = await made.health()
        assert (health.live, health.ready, health.reason) == (False, False, "unauthorized")
    assert KEY not in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"\xff" + KEY.encode(), f"{KEY}\n{OTHER}".encode()])
async def test_a_file_that_holds_no_key(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    async with adapter("http://127.0.0.1:1", api_key=file) as made:
        with pytest.raises(AdapterError) as caught:
            await made.submit(task())
    assert caught.value.detail == "unauthorized"
    assert leaks(caught.value, KEY, OTHER) == []


# On the wire.


async def echo(connection: Connection) -> None:
    """Take one key, then only the other; an answer tells what it was given."""
    while True:
        request = await connection.request()
        given = request.headers.get("authorization", "")
        if request.path == "/props":
            await connection.send(answer(PROPS))
        elif request.json["prompt"] == "quote":
            body = f'{{"error":{{"message":"not {given} nor {KEY}"}}}}'
            await connection.send(answer(body, "400 Bad Request"))
        else:
            await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)
            return


async def quoted(made: LlamaCppAdapter) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        await made.submit(task(prompt="quote"))
    return caught.value


async def test_a_rotated_key_is_sent_and_redacted_from_its_first_use(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY, encoding="utf-8")
    async with playing(echo) as server, adapter(server.url, api_key=file) as made:
        await (await made.submit(task())).collect()
        file.write_text(OTHER, encoding="utf-8")
        # The identity is known: this is the first request with the new key.
        error = await quoted(made)
        assert leaks(error, KEY, OTHER) == []
        assert error.message.count("****") == 2
        sent = [request.headers["authorization"] for request in server.requests("/completion")]
    assert sent == [f"Bearer {KEY}", f"Bearer {OTHER}"]


async def test_a_function_s_keys_are_sent_and_redacted() -> None:
    keys = [KEY]
    async with playing(echo) as server, adapter(server.url, api_key=lambda: keys[-1]) as made:
        await (await made.submit(task())).collect()
        keys.append(OTHER)
        assert leaks(await quoted(made), KEY, OTHER) == []
        assert KEY not in repr(made)
        assert OTHER not in repr(made)
        sent = [request.headers["authorization"] for request in server.requests("/completion")]
    assert sent == [f"Bearer {KEY}", f"Bearer {OTHER}"]
