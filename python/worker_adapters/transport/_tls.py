"""Whom TLS trusts and who we are, the same on every transport."""

import os
import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import certifi

from worker_adapters._secret import SecretBytes
from worker_adapters.tls import Pem, TlsOptions

__all__ = ["TlsSetup", "is_refused_certificate"]

MAX_PEM_BYTES: Final = 4 << 20

# What OpenSSL calls the alerts with which a server refuses a client's certificate, or the lack of
# one. In TLS 1.3 they come after the handshake (RFC 8446, section 4.4.2.4).
_REFUSALS: Final = (
    "BAD_CERTIFICATE",
    "UNSUPPORTED_CERTIFICATE",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_REQUIRED",
    "UNKNOWN_CA",
    "ACCESS_DENIED",
)


def is_refused_certificate(error: BaseException | None) -> bool:
    """Whether a connection was lost because the server refuses our certificate."""
    if not isinstance(error, ssl.SSLError):
        return False
    reason = error.reason or ""
    return "ALERT" in reason and reason.endswith(_REFUSALS)


@dataclass(frozen=True, slots=True)
class TlsSetup:
    """`TlsOptions`, read. Raises ValueError, saying which of them is of no use and why.

    No message quotes what was read.
    """

    roots: bytes = field(repr=False)
    """PEM of every certificate that is trusted."""
    client_cert: bytes | None = field(default=None, repr=False)
    client_key: bytes | None = field(default=None, repr=False)
    """Both PEM."""

    @classmethod
    def of(cls, options: TlsOptions | None) -> "TlsSetup":
        """Read what the options name, the public CAs without any."""
        public = certifi.contents().encode("ascii")
        if options is None:
            return cls(public)
        own = [_read("ca_file", options.ca_file), _pem(options.ca_data)]
        roots = [*own] if options.replace_roots else [public, *own]
        cert = _read("client_cert", options.client_cert)
        key = _read("client_key", options.client_key)
        setup = cls(
            b"\n".join(filter(None, roots)), cert, None if key is None else SecretBytes(key)
        )
        for name, pem in zip(("ca_file", "ca_data"), own, strict=True):
            if pem is not None:
                _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), name, pem)
        setup.context()
        return setup

    def context(self) -> ssl.SSLContext:
        """Return it for Python's own TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        _trust(context, "ca", self.roots)
        if self.client_cert is not None and self.client_key is not None:
            _show(context, self.client_cert, self.client_key)
        return context


def _read(name: str, given: Pem | None) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    try:
        with Path(given).open("rb") as file:
            read = SecretBytes(file.read(MAX_PEM_BYTES + 1))
        if len(read) <= MAX_PEM_BYTES:
            return read
        why = "the file is too large"
    except OSError as error:
        why = error.strerror or type(error).__name__
    raise ValueError(f"{name} cannot be read: {why}")


def _pem(given: str | bytes | None) -> bytes | None:
    return given.encode() if isinstance(given, str) else given


def _trust(context: ssl.SSLContext, name: str, pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii", "replace"))
        if context.cert_store_stats()["x509"]:
            return
    except (ssl.SSLError, ValueError):
        pass
    raise ValueError(f"{name} holds no PEM certificate, or one that is damaged")


def _show(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    why = "client_cert and client_key are not PEM of a certificate and its own key"
    with suppress(ssl.SSLError):
        try:
            _with_file(
                SecretBytes(cert + b"\n" + key),
                lambda path: context.load_cert_chain(path, password=_encrypted),
            )
        except _EncryptedError:
            why = "client_key is encrypted; decrypt it first (openssl pkey)"
        else:
            return
    raise ValueError(why)


def _with_file(data: bytes, use: Callable[[str], None]) -> None:
    """Let ``use`` read data under a name: the ssl module takes a key from a file only."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("worker-adapters", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            use(f"/proc/self/fd/{descriptor}")
        return
    with tempfile.TemporaryDirectory() as folder:  # of our own user alone
        path = Path(folder) / "client.pem"
        path.touch(mode=0o600)
        path.write_bytes(data)
        use(str(path))


class _EncryptedError(Exception):
    pass


def _encrypted() -> NoReturn:
    # Without this OpenSSL asks for a password on the terminal.
    raise _EncryptedError
