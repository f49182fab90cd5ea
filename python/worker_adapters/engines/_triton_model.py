"""A model of Triton's as its configuration describes it.

Triton takes inputs it does not know without a word, so that a parameter of the wrong flavour or
version would be ignored. Every input is therefore looked up here before it is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

__all__ = ["Flavour", "TritonModel"]

Flavour: TypeAlias = Literal["inflight", "llmapi"]

INT_RANGES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        f"TYPE_{sign}INT{bits}": (
            (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    }
)
"""What an integer input holds. Triton 2.51 does not look: 2**32 + 1 becomes 1."""

_INNER: Final = frozenset(("input_ids", "input_lengths", "request_output_len"))
"""What the step of an ensemble that generates takes, and all it needs."""

_NAMES: Final[Mapping[Flavour, Mapping[str, tuple[str, ...]]]] = {
    "inflight": {
        "max_tokens": ("max_tokens",),
        "stream": ("stream",),
        "exclude": ("exclude_input_in_output",),
        "seed": ("seed", "random_seed"),
        "temperature": ("temperature",),
        "top_k": ("top_k",),
        "top_p": ("top_p",),
        "min_p": ("min_p",),
        "repeat_penalty": ("repetition_penalty",),
        "presence_penalty": ("presence_penalty",),
        "frequency_penalty": ("frequency_penalty",),
        "stop": ("stop_words",),
        "logprobs": ("return_log_probs",),
        "tokens_in": ("return_num_input_tokens",),
        "tokens_out": ("return_num_output_tokens",),
        "guide_type": ("guided_decoding_guide_type",),
        "guide": ("guided_decoding_guide",),
        "lora": ("lora_task_id",),
    },
    "llmapi": {
        "max_tokens": ("sampling_param_max_tokens",),
        "stream": ("streaming",),
        "exclude": ("sampling_param_exclude_input_from_output",),
        "seed": ("sampling_param_seed",),
        "temperature": ("sampling_param_temperature",),
        "top_k": ("sampling_param_top_k",),
        "top_p": ("sampling_param_top_p",),
        "min_p": ("sampling_param_min_p",),
        "repeat_penalty": ("sampling_param_repetition_penalty",),
        "presence_penalty": ("sampling_param_presence_penalty",),
        "frequency_penalty": ("sampling_param_frequency_penalty",),
        "stop": ("sampling_param_stop",),
        "finish_reason": ("return_finish_reason",),
        "stop_reason": ("return_stop_reason",),
    },
}
"""What each flavour calls our parameters; by version, the newest name first."""


@dataclass(frozen=True, slots=True)
class TritonModel:
    """What ``/v2/models/NAME/config`` says, as far as it is acted on."""

    name: str
    inputs: Mapping[str, str]
    """Data type by name."""
    required: frozenset[str]
    outputs: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    """Dimensions of the inputs, without the batch's."""
    batches: bool
    """Whether requests have a batch dimension in front."""
    decoupled: bool
    """Whether a request may have more answers than one."""
    accumulates: bool
    """Whether each answer repeats the text so far, on request of its configuration."""
    steps: tuple[str, ...] = ()
    """Names of an ensemble's models, in order."""
    generator: str | None = None
    """The one of them that generates."""
    engine_path: str | None = None
    """Where the engine was loaded from."""

    @classmethod
    def read(cls, config: Any) -> "TritonModel":
        """Read a configuration.

        Raises KeyError, TypeError or ValueError for one of another shape.
        """
        inputs: Sequence[Any] = config["input"]
        steps: Sequence[Any] = config.get("ensemble_scheduling", {}).get("step", ())
        parameters = {
            str(key): str(value.get("string_value", ""))
            for key, value in config.get("parameters", {}).items()
        }
        generators = [step for step in steps if step["input_map"].keys() >= _INNER]
        return cls(
            name=str(config["name"]),
            inputs={str(row["name"]): str(row["data_type"]) for row in inputs},
            required=frozenset(
                str(row["name"]) for row in inputs if not row.get("optional", False)
            ),
            outputs={str(row["name"]): str(row["data_type"]) for row in config["output"]},
            shapes={str(row["name"]): tuple(int(size) for size in row["dims"]) for row in inputs},
            batches=int(config.get("max_batch_size", 0)) > 0,
            decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled", False)),
            accumulates=parameters.get("accumulate_tokens", "").lower() in {"true", "1"},
            steps=tuple(str(step["model_name"]) for step in steps),
            generator=str(generators[0]["model_name"]) if len(generators) == 1 else None,
            engine_path=parameters.get("gpt_model_path") or None,
        )

    @property
    def flavour(self) -> Flavour | None:
        """Which of TensorRT-LLM's interfaces it has; None for a model that is not one of them."""
        if self.inputs.get("text_input") != "TYPE_STRING" or "text_output" not in self.outputs:
            return None
        if "streaming" in self.inputs or "sampling_param_max_tokens" in self.inputs:
            return "llmapi"
        return "inflight" if "max_tokens" in self.inputs else None

    @property
    def text(self) -> Literal["delta", "accumulated"]:
        """Whether an event holds new text or all text so far."""
        return "accumulated" if self.accumulates or self.flavour == "llmapi" else "delta"

    @property
    def is_ensemble(self) -> bool:
        """Whether it is several models in a row."""
        return bool(self.steps)

    @property
    def can_stop_by_id(self) -> bool:
        """Whether a request to it can end another of the same id, and needs nothing else."""
        if self.inputs.get("stop") != "TYPE_BOOL" or not self.decoupled:
            return False
        return self.required <= (_INNER if "input_ids" in self.inputs else {"text_input"})

    def input(self, parameter: str) -> str | None:
        """Return what it calls one of our parameters; None where it has no such input."""
        if self.flavour is None:
            return None
        names = _NAMES[self.flavour].get(parameter, ())
        return next((name for name in names if name in self.inputs), None)

    def highest(self, name: str) -> int | None:
        """Return the largest integer the input takes; None where it is not known to have one."""
        return INT_RANGES.get(self.inputs[name], (None, None))[1]

    def holds(self, name: str, value: Any) -> bool:
        """Whether the input has room for the value."""
        low, high = INT_RANGES.get(self.inputs[name], (None, None))
        return type(value) is not int or low is None or high is None or low <= value <= high
