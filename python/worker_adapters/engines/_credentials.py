"""The key of an engine: given, read from a file, or asked for, and never shown."""

import logging
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import SecretStr

from worker_adapters._core import Redactor
from worker_adapters._secret import SecretBytes
from worker_adapters.transport import Headers

__all__ = ["ApiKey", "Credentials", "seal_key"]

ApiKey: TypeAlias = str | SecretStr | Path | Callable[[], str | SecretStr]
"""A key; a file that holds one and nothing else; or a function that returns the key of now."""

_LOGGER: Final = logging.getLogger("worker_adapters")

MIN_KEY_CHARACTERS: Final = 6

KEPT_KEYS: Final = 64
"""How many keys stay redacted: a function may return another one for each request."""


class Credentials:
    """Where a key comes from, and what must be redacted because of it.

    A file is read again when it changes, a function is asked before every request: keys may be
    rotated while the adapter lives. The last `KEPT_KEYS` keys stay redacted. A file that is not its
    owner's alone is used all the same, and said to be so once, in a log record.

    Raises ValueError for a key that cannot be sent or redacted, TypeError for one of another type;
    so does `headers`, later on. No message repeats a key.
    """

    def __init__(self, api_key: ApiKey | None) -> None:
        # No local variable holds a plain key where an exception may be raised.
        self._source = SecretStr(api_key) if isinstance(api_key, str) else api_key
        del api_key
        self._stamp: tuple[int, int, int] | None = None
        self._warned = False
        self._used: deque[SecretStr] = deque(maxlen=KEPT_KEYS)
        self._headers: Headers = ()
        self.redactor = Redactor()
        if isinstance(self._source, SecretStr):
            self._use(self._source)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'none' if self._source is None else 'set'})"

    def headers(self) -> Headers:
        """Return the headers that carry the key of now.

        Raises OSError when its file cannot be read, ValueError when the key cannot be used, and
        whatever the function raises.
        """
        source = self._source
        if isinstance(source, Path):
            status = source.stat()
            # The inode, too: two files put in one place within a tick of the clock look alike.
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._use(SecretStr(source.read_text(encoding="utf-8").strip()))
                self._stamp = stamp
                self._warn_of_others(source, status.st_mode)
        elif callable(source):
            self._use(_secret(source()))
        return self._headers

    def _warn_of_others(self, file: Path, mode: int) -> None:
        if self._warned or not mode & (stat.S_IRWXG | stat.S_IRWXO):
            return
        self._warned = True
        permissions = stat.S_IMODE(mode)
        _LOGGER.warning("others than its owner may use the key file %s (%04o)", file, permissions)

    def _use(self, key: SecretStr) -> None:
        if self._used and key == self._used[-1]:
            return
        if why := _flaw(key):
            raise ValueError(f"api_key must {why}")
        if key in self._used:
            self._used.remove(key)
        self._used.append(key)
        self.redactor = Redactor([used.get_secret_value() for used in self._used])
        bearer = SecretBytes(b"Bearer " + key.get_secret_value().encode("ascii"))
        self._headers = ((b"Authorization", bearer),)


def seal_key(options: dict[str, Any]) -> None:
    """Keep a plain key among an adapter's options out of the variables of whoever holds them."""
    if isinstance(options.get("api_key"), str):
        options["api_key"] = SecretStr(options["api_key"])


def _secret(given: object) -> SecretStr:
    if isinstance(given, SecretStr):
        return given
    if isinstance(given, str):
        return SecretStr(given)
    del given  # it may be a key all the same
    raise TypeError("api_key must be a string")


def _flaw(key: SecretStr) -> str:
    """Return what a key must be and this one is not; nothing for one that can be used."""
    value = key.get_secret_value()
    if not value.isascii() or not value.isprintable() or value != value.strip():
        return "be printable ASCII without spaces around it"
    if len(value) < MIN_KEY_CHARACTERS:
        return f"have at least {MIN_KEY_CHARACTERS} characters, or it cannot be redacted"
    return ""
