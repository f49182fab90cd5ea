"""What a dialect is told beside the bytes: options, and refusals of those it does not have."""

import pytest

from worker_adapters import StreamDecoder
from worker_adapters._core import dialects

NEEDED = {"field_map": {"text_pointer": "/text"}}

GOOD = [
    ("sglang", {"text": "auto"}),
    ("sglang", {"text": "delta"}),
    ("sglang", {"text": "cumulative"}),
    ("triton", {"text": "delta"}),
    ("triton", {"text": "accumulated"}),
    ("triton", {"text": "cumulative"}),
    ("field_map", {"text_pointer": "/a/0/b~1c", "text": "cumulative", "end": "pointer:/done"}),
    ("field_map", {"text_pointer": "/", "end": "marker:[DONE]"}),
    ("field_map", {"text_pointer": "/", "end": "marker:<|end|>"}),
    ("field_map", {"text_pointer": "/t", "finish_reason_pointer": "/f", "end": "finish_reason"}),
    ("field_map", {"text_pointer": "/t", "end": "body", "token_ids_pointer": "/ids"}),
    ("field_map", {"text_pointer": "/t", "tokens_in_pointer": "/i", "tokens_out_pointer": "/o"}),
]

BAD = [
    ("openai", {"text": "delta"}, "no option"),
    ("tgi", {"text": "delta"}, "no option"),
    ("llamacpp", {"logprob": "true"}, "no option"),
    ("sglang", {"text": "both"}, "text"),
    ("sglang", {"text": "accumulated"}, "auto, delta or cumulative"),
    ("sglang", {"Text": "auto"}, "no option"),
    ("sglang", {"end": "body"}, "no option"),
    ("triton", {"text": "auto"}, "text"),
    ("triton", {"text": ""}, "text"),
    ("triton", {"model": "ensemble"}, "no option"),
    ("field_map", {}, "text_pointer"),
    ("field_map", {"text": "delta"}, "text_pointer"),
    ("field_map", {"text_pointer": ""}, "JSON pointer"),
    ("field_map", {"text_pointer": "text"}, "JSON pointer"),
    ("field_map", {"text_pointer": "/t", "text": "auto"}, "text"),
    ("field_map", {"text_pointer": "/t", "text": "accumulated"}, "delta or cumulative"),
    ("field_map", {"text_pointer": "/t", "error_pointer": "error"}, "JSON pointer"),
    ("field_map", {"text_pointer": "/t", "end": ""}, "end"),
    ("field_map", {"text_pointer": "/t", "end": "marker"}, "end"),
    ("field_map", {"text_pointer": "/t", "end": "marker:"}, "end"),
    ("field_map", {"text_pointer": "/t", "end": "marker:a\nb"}, "end"),
    ("field_map", {"text_pointer": "/t", "end": "pointer:done"}, "JSON pointer"),
    ("field_map", {"text_pointer": "/t", "end": "never"}, "end"),
    ("field_map", {"text_pointer": "/t", "reasoning_pointer": "/r"}, "no option"),
]


def as_id(value: object) -> str:
    """A short name for a row."""
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("dialect", "options"), GOOD, ids=as_id)
def test_options_that_a_dialect_has(dialect: str, options: dict[str, str]) -> None:
    StreamDecoder(dialect, options=options)


@pytest.mark.parametrize(("dialect", "options", "named"), BAD, ids=as_id)
def test_options_that_it_does_not_take(dialect: str, options: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StreamDecoder(dialect, options=options)


@pytest.mark.parametrize("dialect", dialects())
@pytest.mark.parametrize("option", ["token_ids", "logprobs"])
def test_details_are_true_or_false_in_every_dialect(dialect: str, option: str) -> None:
    needed = NEEDED.get(dialect, {})
    for value in ("true", "false"):
        StreamDecoder(dialect, options={**needed, option: value})
    for value in ("", "True", "1", "yes"):
        with pytest.raises(ValueError, match="true or false"):
            StreamDecoder(dialect, options={**needed, option: value})
    with pytest.raises(ValueError, match="no option"):
        StreamDecoder(dialect, options={**needed, "surprise": "true"})


def test_what_a_dialect_needs_is_named() -> None:
    with pytest.raises(ValueError, match='needs the option "text_pointer"'):
        StreamDecoder("field_map")


def test_a_finish_reason_that_ends_needs_a_place_to_stand() -> None:
    with pytest.raises(ValueError, match='needs the option "finish_reason_pointer"'):
        StreamDecoder("field_map", options={"text_pointer": "/t", "end": "finish_reason"})


def test_options_without_their_dialect_are_refused_together_with_it() -> None:
    with pytest.raises(ValueError, match="unknown engine"):
        StreamDecoder("gpt", options={"text": "delta"})
