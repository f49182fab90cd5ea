"""What a configuration says. Every field that is left out has the library's own default."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, StrictBool, field_validator, model_validator

from worker_adapters._core import EgressPolicy, Redactor
from worker_adapters._model import Contract, LineText
from worker_adapters.config.problems import FieldError
from worker_adapters.config.secrets import SecretRef
from worker_adapters.contract import ExpectedModel, SamplerProfile, Timeouts
from worker_adapters.extensions import Feature
from worker_adapters.host.policy import PoolPolicy, ProbePolicy
from worker_adapters.observe.logs import CAPACITY
from worker_adapters.observe.text import MAX_CHARS
from worker_adapters.retry import RetryPolicy
from worker_adapters.tls import TlsOptions
from worker_adapters.transport import validate_base_url

__all__ = [
    "VERSION",
    "Configuration",
    "EgressConfig",
    "LogsConfig",
    "MetricsConfig",
    "PoolConfig",
    "ReplicaConfig",
    "ReplicaOptions",
    "TextConfig",
    "TimeoutsConfig",
    "TlsConfig",
]

VERSION: Final = 1

_Url = Annotated[str, AfterValidator(validate_base_url)]
_Path = Annotated[str, Field(pattern=r"^/", description="an absolute path")]
_Clock: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["off"]
_Plain: TypeAlias = bool | int | float | str | tuple[str, ...]
_Label: TypeAlias = Literal[
    "engine", "engine_version", "pool_id", "replica_id", "priority", "reason", "model_id"
]
_Budget = Annotated[int, Field(strict=True, ge=1, le=65_536)]


class TimeoutsConfig(Contract):
    """The clocks of `Timeouts`, in seconds; ``"off"`` switches one off."""

    connect: _Clock | None = None
    tls: _Clock | None = None
    unary: _Clock | None = None
    first_token: _Clock | None = None
    token_gap: _Clock | None = None
    idle: _Clock | None = None

    def over(self, defaults: Timeouts) -> Timeouts:
        """Return ``defaults`` with those clocks that are set here."""
        told = {name: getattr(self, name) for name in type(self).model_fields}
        changes = {
            name: None if value == "off" else value
            for name, value in told.items()
            if value is not None
        }
        return defaults.model_copy(update=changes)


class EgressConfig(Contract):
    """What may be connected to: see `EgressPolicy`."""

    allow: tuple[str, ...]
    allow_loopback: StrictBool = False
    allow_private: StrictBool = False
    allow_nat64: StrictBool = False

    @model_validator(mode="after")
    def _can_allow_something(self) -> Self:
        self.policy()
        return self

    def policy(self) -> EgressPolicy:
        """Return the policy it says. Raises ValueError."""
        return EgressPolicy(
            allow=self.allow,
            allow_loopback=self.allow_loopback,
            allow_private=self.allow_private,
            allow_nat64=self.allow_nat64,
        )


class TlsConfig(Contract):
    """Whom to trust and who we are: see `TlsOptions`. All are files."""

    ca_file: _Path | None = None
    replace_roots: StrictBool = False
    client_cert: _Path | None = None
    client_key: _Path | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.options()
        return self

    def options(self) -> TlsOptions:
        """Return the options it says. Raises ValueError."""
        return TlsOptions(
            ca_file=self.ca_file,
            replace_roots=self.replace_roots,
            client_cert=self.client_cert,
            client_key=self.client_key,
        )


class ReplicaOptions(Contract):
    """What an adapter takes; a replica's own go before its pool's, and these before the defaults.

    ``timeouts`` and ``options`` are put together field by field.
    """

    engine: LineText | None = None
    """``llamacpp``, ``vllm``, ``openai``, ``sglang``, ``tgi``, ``triton``, or another package's."""
    model: LineText | None = None
    """The name to ask for, where an engine serves models by name."""
    expect: ExpectedModel | None = None
    """The model that has to be loaded; while another one is, the replica is not ready."""
    api_key: SecretRef | None = None
    timeouts: TimeoutsConfig | None = None
    retries: RetryPolicy | None = None
    transport: Literal["native", "httpx"] | None = None
    gather_window: Annotated[float, Field(ge=0, le=0.1, allow_inf_nan=False)] | None = None
    max_streams: Annotated[int, Field(strict=True, ge=1)] | None = None
    egress: EgressConfig | None = None
    tls: TlsConfig | None = None
    sampler_profiles: tuple[LineText, ...] | None = None
    """Which of the configuration's, by version; all where nothing is said."""
    options: dict[str, _Plain] = Field(default_factory=dict)
    """What this engine's adapter takes beyond all that; no key, by whatever name."""

    @field_validator("options")
    @classmethod
    def _are_of_the_engine_alone(cls, options: dict[str, _Plain]) -> dict[str, _Plain]:
        redactor = Redactor()
        for name in options:
            if name in ReplicaConfig.model_fields:
                raise FieldError((name,), "is no option; write it beside options, not in it")
            line = f"{name}=value-of-it"
            if redactor.redact(line) != line:
                raise FieldError(
                    (name,), "is the name of a secret; write api_key = 'env:NAME' beside options"
                )
        return options


class ReplicaConfig(ReplicaOptions):
    """One engine at one address."""

    url: _Url
    """``http[s]://host[:port][/prefix]``."""
    device_mask: LineText | None = None


class PoolConfig(ReplicaOptions):
    """A pool: its replicas, what they have in common, and what holds for all of it."""

    policy: PoolPolicy | None = None
    replicas: dict[LineText, ReplicaConfig] = Field(default_factory=dict)


class TextConfig(Contract):
    """Prompts and generated text in logs; with ``mode = "dev"`` only. See `TextPolicy`."""

    sample_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    max_chars: Annotated[int, Field(strict=True, ge=1, le=MAX_CHARS)] = 2000


class LogsConfig(Contract):
    """Where log lines go; handlers and levels are the program's, by `logging`."""

    logger: LineText = "worker_adapters.adapter"
    capacity: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = CAPACITY
    text: TextConfig | None = None


class MetricsConfig(Contract):
    """How metrics are exported, and what bounds their series. See `Metrics`."""

    milliseconds: StrictBool = True
    """Whether the contract's two latencies are exported in milliseconds."""
    seconds: StrictBool = False
    """Whether they are in seconds, too, or instead."""
    label_budgets: dict[_Label, _Budget] = Field(default_factory=dict)
    """How many values a label has before further ones become ``other``."""
    max_series: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000


class Configuration(Contract):
    """All of it: pools and replicas, and what holds for every one of them."""

    version: Literal[1]
    """Of this format."""
    mode: Literal["production", "dev"] = "production"
    """``dev`` allows what production never does: text in logs."""
    defaults: ReplicaOptions = ReplicaOptions()
    """What holds for every replica that says nothing else."""
    policy: PoolPolicy = PoolPolicy()
    """What holds for every pool that has no policy of its own."""
    probes: ProbePolicy = ProbePolicy()
    features: tuple[Feature, ...] = ()
    """Which extensions of the contract tasks may use: see `Extensions`."""
    sampler_profiles: tuple[SamplerProfile, ...] = ()
    logs: LogsConfig = LogsConfig()
    metrics: MetricsConfig = MetricsConfig()
    pools: dict[LineText, PoolConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _text_is_for_development(self) -> Self:
        if self.logs.text is not None and self.mode != "dev":
            raise FieldError(
                ("logs", "text"),
                "is for development; remove it, or set mode = 'dev' where nobody but developers "
                "writes prompts",
            )
        return self

    @model_validator(mode="after")
    def _profiles_are_known(self) -> Self:
        versions = [profile.version for profile in self.sampler_profiles]
        if len(set(versions)) != len(versions):
            raise FieldError(("sampler_profiles",), "two have the same version; give each its own")
        for field, options in self._every_options():
            for at, version in enumerate(options.sampler_profiles or ()):
                if version not in versions:
                    raise FieldError(
                        (*field, "sampler_profiles", at), "is no version of sampler_profiles"
                    )
        return self

    @model_validator(mode="after")
    def _engines_are_known(self) -> Self:
        from worker_adapters.engines import engine_names

        names = engine_names()
        for field, options in self._every_options():
            if options.engine is not None and options.engine not in names:
                raise FieldError((*field, "engine"), f"is no engine; one of {', '.join(names)}")
        for pool_id, pool in self.pools.items():
            for replica_id, replica in pool.replicas.items():
                if (replica.engine or pool.engine or self.defaults.engine) is None:
                    raise FieldError(
                        ("pools", pool_id, "replicas", replica_id),
                        "no engine is named, neither here nor by the pool or the defaults; "
                        f"write engine = {names[0]!r}",
                    )
        return self

    def _every_options(self) -> Iterator[tuple[tuple[str, ...], ReplicaOptions]]:
        yield ("defaults",), self.defaults
        for pool_id, pool in self.pools.items():
            yield ("pools", pool_id), pool
            for replica_id, replica in pool.replicas.items():
                yield ("pools", pool_id, "replicas", replica_id), replica

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it, redacted; what nobody set is left out."""
        redactor = Redactor()
        shown = _redacted(self.model_dump(mode="json", exclude_defaults=True), redactor)
        return {"version": self.version, **shown}


def _redacted(value: Any, redactor: Redactor, name: str = "", table: str = "") -> Any:
    """Return a field's value, redacted; ``table`` is the name of what it is in."""
    match value:
        case dict():
            return {
                inner: _redacted(below, redactor, inner, name) for inner, below in value.items()
            }
        case list():
            return [_redacted(inner, redactor) for inner in value]
        case str() if not _is_reference(value, name, table):
            return redactor.redact(value)
    return value


def _is_reference(value: str, name: str, table: str) -> bool:
    """Return whether a field that is named like a secret says where one is."""
    match name, table:
        case "api_key", _:
            return value.startswith(("env:", "file:"))
        case "client_key", "tls":
            return value.startswith("/")
    return False
