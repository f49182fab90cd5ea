"""Whom an adapter trusts over TLS, and who it says it is itself."""

import os
from dataclasses import dataclass
from typing import TypeAlias

from worker_adapters._secret import SecretBytes

__all__ = ["Pem", "TlsOptions"]

Pem: TypeAlias = str | os.PathLike[str] | bytes
"""The path of a PEM file, or what one holds."""


@dataclass(frozen=True, slots=True, repr=False)
class TlsOptions:
    """How an adapter speaks TLS; certificates are always verified, and there is no way not to.

    Files are read when an adapter is made, which raises ValueError for what cannot be used.

    Args:
        ca_file: Certificates to trust: those of CAs, or a server's own if it is self-signed.
        ca_data: The same as PEM, beside or instead of a file.
        replace_roots: Trust these *instead of* the public CAs (certifi's), not besides.
        client_cert: The certificate to show to a server that asks for one (mTLS), followed by its
            intermediates: a path, or PEM as bytes.
        client_key: Its private key, not encrypted.
    """

    ca_file: str | os.PathLike[str] | None = None
    ca_data: str | bytes | None = None
    replace_roots: bool = False
    client_cert: Pem | None = None
    client_key: Pem | None = None

    def __post_init__(self) -> None:
        if self.replace_roots and self.ca_file is None and self.ca_data is None:
            raise ValueError("replace_roots without ca_file or ca_data would trust nobody")
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key go together")
        if isinstance(self.client_key, bytes) and not isinstance(self.client_key, SecretBytes):
            object.__setattr__(self, "client_key", SecretBytes(self.client_key))

    def __repr__(self) -> str:
        trusted = "public"
        if self.ca_file is not None or self.ca_data is not None:
            trusted = "own" if self.replace_roots else "public+own"
        return f"TlsOptions(trusted={trusted!r}, client_cert={self.client_cert is not None})"
