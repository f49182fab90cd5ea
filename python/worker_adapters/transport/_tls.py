"""Whom TLS trusts, the same on every transport."""

import certifi

__all__ = ["trusted_roots"]


def trusted_roots() -> bytes:
    """Return the certificates that httpx trusts, as PEM."""
    return certifi.contents().encode("ascii")
