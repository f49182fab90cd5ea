"""Bytes that no repr shows."""

__all__ = ["SecretBytes"]


class SecretBytes(bytes):
    """Bytes of a request that hold a key or a prompt; in a traceback with variables ``****``.

    They are bytes in every other respect; what is made of them (a slice, a copy) is plain bytes.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "****"

    __str__ = __repr__
