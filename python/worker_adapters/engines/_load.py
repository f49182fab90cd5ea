"""How busy an engine is, by its own metrics: what each engine calls what, in any version."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = ["ALIASES", "EngineLoad"]

Alias: TypeAlias = str | tuple[str, str]
"""A metric, or one with the label that picks its series."""

Gauges: TypeAlias = Mapping[str, Sequence[Alias]]

_REQUESTS: Final = "nv_trt_llm_request_metrics"
_BLOCKS: Final = "nv_trt_llm_kv_cache_block_metrics"

ALIASES: Final[Mapping[str, Gauges]] = {
    "llamacpp": {
        "running": ("llamacpp:requests_processing",),
        "waiting": ("llamacpp:requests_deferred",),
        # Gone in the builds that were looked at.
        "kv_cache_usage": ("llamacpp:kv_cache_usage_ratio",),
    },
    "vllm": {
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        # 0.9.2 to 0.11 have both, 0.12 and later only the first.
        "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    },
    "sglang": {
        "running": ("sglang:num_running_reqs",),
        "waiting": ("sglang:num_queue_reqs",),
        "kv_cache_usage": ("sglang:token_usage",),
    },
    "tgi": {
        "running": ("tgi_batch_current_size",),
        "waiting": ("tgi_queue_size",),
    },
    "triton": {
        "running": ((_REQUESTS, 'request_type="scheduled"'),),
        "waiting": ((_REQUESTS, 'request_type="waiting"'),),
        "kv_cache_usage": ((_BLOCKS, 'kv_cache_block_type="fraction"'),),
    },
    # trtllm-serve; of other servers nothing is known.
    "openai": {
        "running": ("trtllm_num_requests_running",),
        "waiting": ("trtllm_num_requests_waiting",),
        "kv_cache_usage": ("trtllm_kv_cache_utilization",),
    },
}
"""What each gauge is called by each engine, the newest name first."""

MAX_COUNT: Final = 2**53
"""Larger samples are none: beyond it a float is no count any more."""

_SAMPLE: Final = re.compile(
    r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^\n]*)\})? (?P<value>[0-9.eE+-]+)(?: [0-9.]+)?$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What the metrics say of an engine's work; None where they do not say it.

    Samples that are negative, not finite or above `MAX_COUNT` say nothing. Each is over all
    data-parallel engines behind the server.
    """

    running: int | None = None
    """Requests being generated."""
    waiting: int | None = None
    """Requests that wait for a place."""
    kv_cache_usage: float | None = None
    """The mean share of the KV cache in use, 0 to 1."""
    engines: int | None = None
    """How many data-parallel engines report."""

    @classmethod
    def from_metrics(cls, exposition: str, engine: str = "vllm") -> "EngineLoad":
        """Read a Prometheus exposition of any version of an engine."""
        gauges = ALIASES.get(engine, {})
        wanted = {
            alias if isinstance(alias, str) else alias[0]
            for aliases in gauges.values()
            for alias in aliases
        }
        samples: dict[str, list[tuple[str, float]]] = {}
        for sample in _SAMPLE.finditer(exposition):
            if sample["name"] in wanted and (value := _number(sample["value"])) is not None:
                samples.setdefault(sample["name"], []).append((sample["labels"] or "", value))
        found = {gauge: _found(aliases, samples) for gauge, aliases in gauges.items()}
        running, waiting = found.get("running"), found.get("waiting")
        usage = found.get("kv_cache_usage")
        return cls(
            running=_count(running),
            waiting=_count(waiting),
            kv_cache_usage=None if usage is None else sum(usage) / len(usage),
            engines=None if running is None else len(running),
        )


def _found(
    aliases: Sequence[Alias], samples: Mapping[str, Sequence[tuple[str, float]]]
) -> list[float] | None:
    for alias in aliases:
        name, picked = (alias, "") if isinstance(alias, str) else alias
        values = [value for labels, value in samples.get(name, ()) if picked in labels]
        if values:
            return values
    return None


def _count(values: Sequence[float] | None) -> int | None:
    return None if values is None else int(sum(values))


def _number(text: str) -> float | None:
    """Return a sample's value; None where it is none that a count or a share can have."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= MAX_COUNT else None
