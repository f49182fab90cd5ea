"""What an adapter can do, as the engine behind it answers.

It is the per-adapter part of the capability document. Every value says where it comes from; a value
nobody could tell is absent, never guessed.
"""

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from worker_adapters._model import Contract, Count32

__all__ = ["API_VERSION", "AdapterCapabilities", "Feature", "Source"]

API_VERSION: Final = "1"
"""Version of the capability document."""

Source: TypeAlias = Literal["engine", "adapter", "configuration"]
"""``engine``: it said so. ``adapter``: known of it and its version. ``configuration``: ours."""


class Feature(Contract):
    """One thing an adapter can or cannot do."""

    value: bool | int | str
    source: Source


class AdapterCapabilities(Contract):
    """What one adapter can do. Figures are absent where neither engine nor adapter knows them.

    ``features`` holds at least ``streaming``, ``cancel`` (``close``, ``abort``, ``close+abort`` or
    ``none``), ``cancel_in_prefill`` (``yes``, ``no`` or ``unknown``) and ``determinism``
    (``strict``, ``best_effort`` or ``none``). Of ``seed``, ``chat``, ``embeddings``, ``rerank``,
    ``metrics`` and the extensions it holds those that somebody can tell of: one that is absent may
    be there or not, and a task that asks for it is sent.
    """

    engine: str
    engine_version: str | None = None
    model: str | None = None
    sampler_profile_versions: tuple[str, ...] = ()
    ctx_max: Count32 | None = None
    """Context length of one task, in tokens."""
    max_tokens_out: Count32 | None = None
    """The most tokens one task may generate."""
    slots_total: Count32 | None = None
    supported_workloads: tuple[Literal["completion", "embedding", "rerank"], ...]
    rate_limits: dict[str, int] = Field(default_factory=dict)
    features: dict[str, Feature]
    sources: dict[str, Source] = Field(default_factory=dict)
    """Where each figure above comes from, by its name."""
    age_ms: Annotated[int, Field(ge=0)] = 0
    """How old the engine's answers are."""
