"""Running the checks, and the card that says what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from worker_adapters.capabilities import AdapterCapabilities
from worker_adapters.errors import WorkerError
from worker_adapters.testing.conformance._checks import CHECKS
from worker_adapters.testing.conformance._hints import hint
from worker_adapters.testing.conformance._subject import Check, Result, Subject

__all__ = ["Lack", "Report", "named", "run_checks"]

_NO_LACK: Final = frozenset(("cancel_in_prefill",))
"""Features whose value is not whether they are there."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Something a server, as it was started, does not do."""

    feature: str
    why: str
    enable: str | None = None
    """What would enable it: a flag of the server, or an argument of the adapter."""


@dataclass(slots=True)
class Report:
    """What a run of the checks has found about one server."""

    engine: str
    url: str
    results: list[Result] = field(default_factory=list)
    capabilities: AdapterCapabilities | None = None

    @property
    def failed(self) -> list[Result]:
        """The checks that found the contract broken."""
        return [result for result in self.results if result.status == "failed"]

    @property
    def is_conformant(self) -> bool:
        """Whether no check has failed."""
        return not self.failed

    @property
    def lacks(self) -> list[Lack]:
        """What the server lacks: what checks missed, then what its capabilities deny."""
        found: dict[str, Lack] = {}
        for result in self.results:
            if result.feature is not None:
                name = result.feature
                found.setdefault(name, Lack(name, result.detail, hint(self.engine, name)))
        features = {} if self.capabilities is None else self.capabilities.features
        for name, feature in features.items():
            if feature.value is not False or name in _NO_LACK:
                continue
            # What nothing would enable is a fact of the engine, not of this server.
            if (enable := hint(self.engine, name)) is not None:
                found.setdefault(name, Lack(name, f"no {name}, says the {feature.source}", enable))
        return list(found.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON has it."""
        told = self.capabilities
        counts = Counter(result.status for result in self.results)
        return {
            "engine": self.engine,
            "url": self.url,
            "engine_version": None if told is None else told.engine_version,
            "model": None if told is None else told.model,
            "conformant": self.is_conformant,
            "summary": {name: counts[name] for name in ("passed", "failed", "lacking", "skipped")},
            "checks": [
                {
                    **{key: value for key, value in asdict(row).items() if value not in (None, "")},
                    "seconds": round(row.seconds, 3),
                }
                for row in self.results
            ],
            "lacks": [
                {key: value for key, value in asdict(row).items() if value is not None}
                for row in self.lacks
            ],
            "capabilities": None if told is None else told.model_dump(exclude_none=True),
        }


async def run_checks(
    subject: Subject,
    checks: Sequence[Check] = tuple(CHECKS),
    *,
    told: Callable[[Result], None] | None = None,
) -> Report:
    """Run the checks one after the other. ``told`` is called with each result as it comes.

    Raises nothing that a check can raise.
    """
    report = Report(subject.engine, subject.url)
    for check in checks:
        result = await check.run(subject)
        report.results.append(result)
        if told is not None:
            told(result)
    try:
        async with subject.adapter() as adapter:
            report.capabilities = await adapter.capabilities()
    except WorkerError:
        # The checks have said so already.
        report.capabilities = None
    return report


def named(names: Iterable[str]) -> list[Check]:
    """Return the checks of these names or areas. Raises ValueError for one that there is not."""
    wanted = set(names)
    found = [check for check in CHECKS if wanted & {check.name, check.area, str(check)}]
    known = {name for check in CHECKS for name in (check.name, check.area, str(check))}
    if unknown := sorted(wanted - known):
        raise ValueError(f"no check or area is called {', '.join(unknown)}")
    return found
