"""Certificates that are right, and those that are not."""

from __future__ import annotations

import datetime
import ssl
import warnings
from typing import TYPE_CHECKING, Final

from worker_adapters.tls import TlsOptions

if TYPE_CHECKING:
    import trustme

__all__ = ["LocalCa"]

_DAY: Final = datetime.timedelta(days=1)


class LocalCa:
    """A certificate authority for the length of a test, made with the package ``trustme``.

        ca = LocalCa()
        async with RawServer(script, tls=ca.serving("127.0.0.1", expired=True)) as server:
            adapter = LlamaCppAdapter(server.url, tls=ca.trusted)

    Raises ImportError where ``trustme`` is not installed.
    """

    def __init__(self) -> None:
        import trustme

        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self._ca.cert_pem.bytes()

    @property
    def trusted(self) -> TlsOptions:
        """What an adapter needs that is to trust this authority, and nobody else."""
        return TlsOptions(ca_data=self.pem, replace_roots=True)

    def client(self, name: str = "client@example.org") -> TlsOptions:
        """As `trusted`, for an adapter that shows a certificate of its own."""
        leaf = self._ca.issue_cert(name)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return TlsOptions(
            ca_data=self.pem,
            replace_roots=True,
            client_cert=chain,
            client_key=leaf.private_key_pem.bytes(),
        )

    def serving(
        self,
        *names: str,
        expired: bool = False,
        newest: ssl.TLSVersion | None = None,
        ciphers: str | None = None,
        asks_for_certificate: bool = False,
    ) -> ssl.SSLContext:
        """Return what a server speaks whose certificate is for ``names``, 127.0.0.1 unless told.

        ``newest`` is the newest version of TLS it knows, however old; ``ciphers`` those it takes up
        to TLS 1.2, as OpenSSL writes them.
        """
        now = datetime.datetime.now(datetime.UTC)
        leaf = self._ca.issue_cert(
            *(names or ("127.0.0.1",)),
            not_before=now - 3 * _DAY,
            not_after=now - _DAY if expired else now + 3 * _DAY,
        )
        context = _context(leaf, newest, ciphers)
        if asks_for_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self._ca.configure_trust(context)
        return context

    def self_signed(self) -> ssl.SSLContext:
        """Return what a server speaks that shows this authority's certificate as its own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with (
            self._ca.cert_pem.tempfile() as certificate,
            self._ca.private_key_pem.tempfile() as key,
        ):
            context.load_cert_chain(certificate, key)
        return context


def _context(
    leaf: trustme.LeafCert, newest: ssl.TLSVersion | None, ciphers: str | None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if newest is not None:
        if newest < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            # That they are deprecated is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = min(newest, ssl.TLSVersion.TLSv1_2)
            context.maximum_version = newest
    return context
