"""A host made of a configuration, and changed to another one without dropping a stream."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from worker_adapters._core import Metrics
from worker_adapters.adapter import WorkerAdapter
from worker_adapters.config.model import Configuration, PoolConfig, ReplicaConfig, ReplicaOptions
from worker_adapters.config.problems import ConfigError, Problem, dotted
from worker_adapters.config.secrets import resolved
from worker_adapters.contract import Timeouts
from worker_adapters.engines import adapter_class
from worker_adapters.extensions import Extensions
from worker_adapters.host import AdapterHost, Observer
from worker_adapters.observe.gauges import GaugeRefresher
from worker_adapters.observe.logs import Logs
from worker_adapters.observe.text import TextPolicy

__all__ = ["Changes", "ConfiguredHost", "adapters_of", "host_from_config"]

RESTART: Final = "The new configuration has other [metrics], which take a restart."
"""What a reload says of a section that it leaves as it is."""

_OF_THE_FILE: Final = ("url", "engine", "device_mask", "options", "timeouts", "sampler_profiles")
"""Fields that are no argument of an adapter by the same name."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload did; replicas as ``pool_id/replica_id``."""

    bound: tuple[str, ...] = ()
    rebound: tuple[str, ...] = ()
    unbound: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()
    """Pools whose policy is another one now, and new ones."""
    forgotten: tuple[str, ...] = ()
    """Pools that are gone."""
    sections: tuple[str, ...] = ()
    """``logs`` and ``probes``, where they are others now."""
    needs_restart: tuple[str, ...] = ()
    """``metrics``, where what counts since the start was made of others."""


class ConfiguredHost:
    """A host and the configuration that it has, which `reload` changes.

    An async context manager, in which the engines' own gauges are read, too: leaving it closes the
    host. Made by `host_from_config`.
    """

    def __init__(
        self,
        config: Configuration,
        *,
        observers: Iterable[Observer] = (),
        logs: Logs | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self._owns_logs = logs is None
        self.logs = logs_of(config) if logs is None else logs
        # What has been counted stays where it is; nobody's metrics are made of a later section.
        self._counted = config.metrics if metrics is None else None
        self.metrics = metrics_of(config, clock) if metrics is None else metrics
        """Where all of it is counted; serve it as docs/metrics.md says."""
        shared = {"clock": clock, "logs": self.logs, "metrics": self.metrics}
        self._arguments = {**shared, **arguments}
        adapters = adapters_of(config, **self._arguments)
        self.host = AdapterHost(
            policy=config.policy,
            pools={pool_id: _policy(config, pool) for pool_id, pool in config.pools.items()},
            probes=config.probes,
            observers=observers,
            logs=self.logs,
            metrics=self.metrics,
            clock=clock,
            rng=rng,
        )
        for key, adapter in adapters.items():
            self.host.bind(adapter, device_mask=_replica(config, key).device_mask)
        self._gauges = GaugeRefresher(
            lambda: [replica.adapter for replica in self.host.registry.replicas()]
        )

    def __repr__(self) -> str:
        return f"ConfiguredHost({self.host!r})"

    @property
    def config(self) -> Configuration:
        """The configuration that the host has now."""
        return self._config

    @property
    def extensions(self) -> Extensions:
        """What tasks may use beyond the contract; validate them with it."""
        return extensions_of(self._config)

    async def __aenter__(self) -> Self:
        await self.host.__aenter__()
        await self._gauges.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the host, in its own loop. Idempotent."""
        if not self.host.is_closed:
            self.host._check_here()
        try:
            await self._gauges.aclose()
        finally:
            await self.host.aclose()
        if self._owns_logs:
            await asyncio.to_thread(self.logs.close)

    def reload(self, config: Configuration) -> Changes:
        """Have the host be as ``config`` says, without dropping a stream.

        Replicas that are new are bound, those that are gone unbound; where anything of a replica
        has changed, another adapter takes its place. Streams finish on the adapter that they are
        on. Nothing changes where anything cannot be made, or where a new replica's place has been
        taken by hand: ConfigError. One that was unbound by hand is bound again where anything of it
        has changed. ``probes`` hold at once, and so do ``logs`` where none were given at the start;
        ``metrics`` are those of the start, and where others are wanted a line warns of it. To be
        called in the host's loop. Raises RuntimeError once the host is closed.
        """
        if self.host.is_closed:
            raise RuntimeError("the host has been closed")
        before, after = self._config, config
        old, new = _plans(before), _plans(after)
        changed = [key for key, plan in new.items() if key in old and old[key] != plan]
        added = [key for key in new if key not in old]
        taken = [key for key in added if self._is_bound(key)]
        if taken:
            raise ConfigError(map(_taken, taken))
        made = adapters_of(after, only={*changed, *added}, **self._arguments)
        host = self.host
        configured = []
        for pool_id, pool in after.pools.items():
            known = before.pools.get(pool_id)
            policy = _policy(after, pool)
            if known is None or _policy(before, known) != policy:
                host.configure(pool_id, policy)
                configured.append(pool_id)
        again = [key for key in changed if not self._is_bound(key)]
        changed = [key for key in changed if key not in again]
        added = [key for key in new if key in {*added, *again}]
        for key in added:
            host.bind(made[key], device_mask=_replica(after, key).device_mask)
        for key in changed:
            host.rebind(made[key], device_mask=_replica(after, key).device_mask)
        removed = [key for key in old if key not in new and self._is_bound(key)]
        for key in removed:
            host.unbind(*key)
        gone = [pool_id for pool_id in before.pools if pool_id not in after.pools]
        for pool_id in gone:
            # Somebody has bound a replica of their own to it, or forgotten it already.
            with contextlib.suppress(ValueError):
                host.forget(pool_id)
        self._config = after
        sections = tuple(self._changed_sections(before, after))
        needs_restart = self._needs_restart(after)
        if needs_restart:
            self.logs.emit(logging.WARNING, RESTART, {})
        return Changes(
            bound=_named(added),
            rebound=_named(changed),
            unbound=_named(removed),
            configured=tuple(configured),
            forgotten=tuple(gone),
            sections=sections,
            needs_restart=needs_restart,
        )

    def _changed_sections(self, before: Configuration, after: Configuration) -> Iterator[str]:
        """Yield what is another one now, beside replicas and pools."""
        if self._owns_logs and before.logs != after.logs:
            self.logs.change(**_logs(after))
            yield "logs"
        if before.probes != after.probes:
            self.host.set_probes(after.probes)
            yield "probes"

    def _needs_restart(self, after: Configuration) -> tuple[str, ...]:
        return ("metrics",) if self._counted not in (None, after.metrics) else ()

    def _is_bound(self, key: "_Key") -> bool:
        pool = self.host.registry.pool(key[0])
        return pool is not None and pool.replica(key[1]) is not None


def host_from_config(
    config: Configuration,
    *,
    observers: Iterable[Observer] = (),
    logs: Logs | None = None,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
    **arguments: Any,
) -> ConfiguredHost:
    """Make a host with every replica of ``config`` bound, and nothing asked yet.

    ``logs`` and ``metrics`` are made as ``config`` says unless they are given; ``arguments`` go to
    every adapter. Raises ConfigError where one cannot be made.
    """
    return ConfiguredHost(
        config,
        observers=observers,
        logs=logs,
        metrics=metrics,
        clock=clock,
        rng=rng,
        arguments=arguments,
    )


def metrics_of(config: Configuration, clock: Callable[[], float] = time.monotonic) -> Metrics:
    """Return what counts as a configuration says."""
    metrics = config.metrics
    return Metrics(
        clock=clock,
        milliseconds=metrics.milliseconds,
        seconds=metrics.seconds,
        max_series=metrics.max_series,
        budgets={str(label): budget for label, budget in metrics.label_budgets.items()},
    )


def logs_of(config: Configuration) -> Logs:
    """Return where the lines go that a configuration says."""
    return Logs(**_logs(config))


def _logs(config: Configuration) -> dict[str, Any]:
    """Return the arguments of the `Logs` that a configuration says."""
    logs = config.logs
    text = None
    if logs.text is not None and config.mode == "dev":
        text = TextPolicy(
            mode="dev", sample_rate=logs.text.sample_rate, max_chars=logs.text.max_chars
        )
    return {"logger": logs.logger, "capacity": logs.capacity, "text": text}


def extensions_of(config: Configuration) -> Extensions:
    """Return the extensions that are switched on, and the engines that tasks may name."""
    engines = {
        options.engine
        for pool in config.pools.values()
        for options in (config.defaults, pool, *pool.replicas.values())
        if options.engine is not None
    }
    return Extensions(engines=frozenset(engines), features=frozenset(config.features))


_Key = tuple[str, str]


def adapters_of(
    config: Configuration, *, only: Iterable[_Key] | None = None, **arguments: Any
) -> dict[_Key, WorkerAdapter]:
    """Make the adapter of every replica, or of those; none connects to anything.

    Raises ConfigError, which names every replica that cannot be made.
    """
    plans = _plans(config)
    wanted = plans.keys() if only is None else set(only)
    made: dict[_Key, WorkerAdapter] = {}
    problems: list[Problem] = []
    for key, plan in plans.items():
        if key not in wanted:
            continue
        try:
            made[key] = plan.make(arguments)
        except (ValueError, TypeError, OSError) as error:
            problems.append(_unmade(key, plan, error))
    if problems:
        raise ConfigError(problems)
    return made


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that makes an adapter; two that are equal make the same one."""

    engine: str
    url: str
    pool_id: str
    replica_id: str
    device_mask: str | None
    options: Mapping[str, Any]
    own: Mapping[str, Any]
    """What only this engine's adapter takes."""

    def make(self, arguments: Mapping[str, Any]) -> WorkerAdapter:
        cls: Any = adapter_class(self.engine)
        given = {"pool_id": self.pool_id, "replica_id": self.replica_id}
        for name, value in self.options.items():
            given[name] = _argument(name, value, cls)
        adapter: WorkerAdapter = cls(self.url, **arguments, **given, **self.own)
        return adapter


def _argument(name: str, value: Any, cls: Any) -> Any:
    """Return a field as the adapter's constructor takes it."""
    match name:
        case "api_key":
            return resolved(value)
        case "timeouts":
            return value.over(getattr(cls, "default_timeouts", Timeouts()))
        case "egress":
            return value.policy()
        case "tls":
            return value.options()
    return value


def _plans(config: Configuration) -> dict[_Key, _Plan]:
    return {
        (pool_id, replica_id): _plan(config, pool_id, pool, replica_id, replica)
        for pool_id, pool in config.pools.items()
        for replica_id, replica in pool.replicas.items()
    }


def _plan(
    config: Configuration, pool_id: str, pool: PoolConfig, replica_id: str, replica: ReplicaConfig
) -> _Plan:
    layers = (config.defaults, pool, replica)
    told: dict[str, Any] = {}
    for name in ReplicaOptions.model_fields:
        for layer in layers:
            if name not in _OF_THE_FILE and (value := getattr(layer, name)) is not None:
                told[name] = value
    clocks = _overlaid(layer.timeouts for layer in layers)
    if clocks is not None:
        told["timeouts"] = clocks
    chosen = _last(layer.sampler_profiles for layer in layers)
    told["sampler_profiles"] = tuple(
        profile
        for profile in config.sampler_profiles
        if chosen is None or profile.version in chosen
    )
    own: dict[str, Any] = {}
    for layer in layers:
        own |= layer.options
    engine = _last(layer.engine for layer in layers)
    return _Plan(
        engine=str(engine),
        url=replica.url,
        pool_id=pool_id,
        replica_id=replica_id,
        device_mask=replica.device_mask,
        options=told,
        own=own,
    )


def _last(values: Iterable[Any]) -> Any:
    return next((value for value in reversed(list(values)) if value is not None), None)


def _overlaid(layers: Iterable[Any]) -> Any:
    """Return one set of clocks out of several, the last one above."""
    known = [layer for layer in layers if layer is not None]
    if not known:
        return None
    merged = known[0]
    for layer in known[1:]:
        told = {name: getattr(layer, name) for name in layer.model_fields_set}
        merged = merged.model_copy(update=told)
    return merged


def _policy(config: Configuration, pool: PoolConfig) -> Any:
    return config.policy if pool.policy is None else pool.policy


def _replica(config: Configuration, key: _Key) -> ReplicaConfig:
    return config.pools[key[0]].replicas[key[1]]


def _named(keys: Iterable[_Key]) -> tuple[str, ...]:
    return tuple(f"{pool_id}/{replica_id}" for pool_id, replica_id in keys)


def _unmade(key: _Key, plan: _Plan, error: Exception) -> Problem:
    location = ("pools", key[0], "replicas", key[1])
    field = dotted(location)
    if isinstance(error, TypeError):
        # It says which argument; that is one of the engine's own.
        unknown = next((name for name in plan.own if f"'{name}'" in str(error)), None)
        if unknown is not None:
            what = f"the adapter of {plan.engine} takes no such option; remove it"
            return Problem(dotted((*location, "options", unknown)), what, "configuration")
        return Problem(field, f"the adapter of {plan.engine} cannot be made so", "configuration")
    if isinstance(error, OSError):
        return Problem(field, error.strerror or "a file cannot be read", "configuration")
    return Problem(field, str(error), "configuration")


def _taken(key: _Key) -> Problem:
    what = "is bound already, and not by the configuration; unbind it first"
    return Problem(dotted(("pools", key[0], "replicas", key[1])), what, "configuration")


def problems_of(config: Configuration) -> Iterator[Problem]:
    """Yield what keeps an adapter from being made: keys that are not there, unknown options."""
    try:
        adapters_of(config)
    except ConfigError as error:
        yield from error.problems
