"""Stand-ins for TensorRT-LLM's models, which need a GPU: their tensors, with scripted text.

`STAND_INS` names them; `models/mock_llm.py` tells what a prompt can make them do.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["STAND_INS", "StandIn", "write_repository"]

_MODELS: Final = Path(__file__).with_name("models")


@dataclass(frozen=True, slots=True)
class StandIn:
    """One model of a repository."""

    source: str
    """Its files in `models`: ``source.pbtxt`` and, unless it is an ensemble, ``source.py``."""
    describes: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """What replaces the ``@marks@`` in the configuration."""
    queue: int | None = None
    """How many requests may wait while it works on one."""

    def config(self, name: str) -> str:
        """Return the configuration of the model under this name."""
        text = (_MODELS / f"{self.source}.pbtxt").read_text("utf-8")
        text = re.sub(r'\Aname: "\w+"', f'name: "{name}"', text)
        for mark, value in self.settings.items():
            text = text.replace(f"@{mark}@", value)
        if self.queue is not None:
            text = text.replace("max_batch_size: 4", "max_batch_size: 1")
            policy = f"default_queue_policy {{ max_queue_size: {self.queue} }}"
            text += f"dynamic_batching {{ {policy} }}\n"
        return text


def _bls(describes: str, accumulate: str = "false", decoupled: str = "true") -> StandIn:
    return StandIn("bls", describes, {"accumulate": accumulate, "decoupled": decoupled})


STAND_INS: Final[Mapping[str, StandIn]] = MappingProxyType(
    {
        "ensemble": StandIn("ensemble", "preprocessing, tensorrt_llm, postprocessing"),
        "preprocessing": StandIn("preprocessing", "a step of the ensemble"),
        "tensorrt_llm": StandIn("inflight", "the step that generates"),
        "postprocessing": StandIn("postprocessing", "a step of the ensemble"),
        "tensorrt_llm_bls": _bls("one model, deltas"),
        "tensorrt_llm_bls_accum": _bls("one model, all text so far", accumulate="true"),
        "tensorrt_llm_bls_sync": _bls("one model, the whole text at once", decoupled="false"),
        "queue_limited": StandIn(
            "bls",
            "one at a time and one waiting",
            {"accumulate": "false", "decoupled": "false"},
            queue=1,
        ),
        "ensemble_limited": StandIn("ensemble_limited", "queue_limited as a step"),
        "llmapi": StandIn("llmapi", "the LLM API flavour", {"decoupled": "true"}),
        "llmapi_sync": StandIn("llmapi", "the same, not decoupled", {"decoupled": "false"}),
        "embedding": StandIn("embedding", "texts to vectors of four numbers"),
    }
)
"""Every stand-in by the name it is served under."""


def write_repository(directory: Path, models: Iterable[str] | Mapping[str, str]) -> None:
    """Write a model repository with these stand-ins, and with the steps of its ensembles.

    A mapping serves the stand-in that is its value under the name that is its key, as in
    ``{"tensorrt_llm": "llmapi"}``. Raises KeyError for an unknown stand-in.
    """
    wanted = dict(models) if isinstance(models, Mapping) else {name: name for name in models}
    while wanted:
        name, kind = wanted.popitem()
        home = directory / name
        if home.exists():
            continue
        stand_in = STAND_INS[kind]
        config = stand_in.config(name)
        version = home / "1"
        version.mkdir(parents=True)
        (home / "config.pbtxt").write_text(config, "utf-8")
        if (code := _MODELS / f"{stand_in.source}.py").exists():
            shutil.copyfile(code, version / "model.py")
            shutil.copyfile(_MODELS / "mock_llm.py", version / "mock_llm.py")
        for step in re.findall(r'model_name: "(\w+)"', config):
            wanted.setdefault(step, step)
