"""What every model of the contract has in common."""

from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

Int32 = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Count32 = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
MAX_NAME_CHARS: Final = 256
"""How long a name, a line or a header's value may be."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS)]


def _header_safe(value: str) -> str:
    """Only what may stand in a header as it is: no CR, LF or NUL can slip into a request."""
    if not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII, because it is sent as an HTTP header")
    return value


def one_line(value: str) -> str:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        raise ValueError("must not contain control characters")
    return value


def _encodable(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            # The original error holds the whole text.
            raise ValueError("must be Unicode text, without lone surrogates") from None
    return value


Text = Annotated[str, AfterValidator(_encodable)]

HeaderText = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(_header_safe)
]
LineText = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(one_line)
]


class Contract(BaseModel):
    """Immutable, no unknown fields, and unset optionals left out when serialised."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
        validate_default=True,
    )

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {name: value for name, value in data.items() if value is not None}
