"""The key of an engine: given, read from a file, or asked for, and never shown."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import SecretStr

from worker_adapters._core import Redactor
from worker_adapters.transport import Headers

__all__ = ["ApiKey", "Credentials"]

ApiKey: TypeAlias = str | SecretStr | Path | Callable[[], str | SecretStr]
"""A key; a file that holds one and nothing else; or a function that returns the key of now."""

MIN_KEY_CHARACTERS: Final = 6

KEPT_KEYS: Final = 64
"""How many keys stay redacted: a function may return another one for each request."""


class Credentials:
    """Where a key comes from, and what must be redacted because of it.

    A file is read again when it changes, a function is asked before every request: keys may be
    rotated while the adapter lives. The last `KEPT_KEYS` keys stay redacted.

    Raises ValueError for a key that cannot be sent or redacted, TypeError for one of another type;
    so does `headers`, later on. No message repeats a key.
    """

    def __init__(self, api_key: ApiKey | None) -> None:
        self._source = api_key
        self._stamp: tuple[int, int, int] | None = None
        self._used: deque[str] = deque(maxlen=KEPT_KEYS)
        self._value: str | None = None
        self._headers: Headers = ()
        self.redactor = Redactor()
        if isinstance(api_key, str | SecretStr):
            self._use(api_key)

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
                self._use(source.read_text(encoding="utf-8").strip())
                self._stamp = stamp
        elif callable(source):
            self._use(source())
        return self._headers

    def _use(self, key: str | SecretStr) -> None:
        value = key.get_secret_value() if isinstance(key, SecretStr) else key
        if not isinstance(value, str):
            raise TypeError("api_key must be a string")
        if value == self._value:
            return
        if not value.isascii() or not value.isprintable() or value != value.strip():
            raise ValueError("api_key must be printable ASCII without spaces around it")
        if len(value) < MIN_KEY_CHARACTERS:
            raise ValueError(
                f"api_key must have at least {MIN_KEY_CHARACTERS} characters, "
                "or it cannot be redacted"
            )
        if value in self._used:
            self._used.remove(value)
        self._used.append(value)
        self.redactor = Redactor(tuple(self._used))
        self._value = value
        self._headers = ((b"Authorization", b"Bearer " + value.encode("ascii")),)
