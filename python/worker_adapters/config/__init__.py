"""Pools and replicas from one file and the environment. See docs/configuration.md.

from worker_adapters.config import host_from_config, load

async with host_from_config(load("adapters.toml")) as configured:
stream = await configured.host.submit("chat", task)
"""

from worker_adapters.config.build import Changes, ConfiguredHost, host_from_config
from worker_adapters.config.load import load
from worker_adapters.config.model import (
    Configuration,
    EgressConfig,
    LogsConfig,
    MetricsConfig,
    PoolConfig,
    ReplicaConfig,
    ReplicaOptions,
    TextConfig,
    TlsConfig,
)
from worker_adapters.config.problems import ConfigError, Problem
from worker_adapters.config.schema import schema

__all__ = [
    "Changes",
    "ConfigError",
    "Configuration",
    "ConfiguredHost",
    "EgressConfig",
    "LogsConfig",
    "MetricsConfig",
    "PoolConfig",
    "Problem",
    "ReplicaConfig",
    "ReplicaOptions",
    "TextConfig",
    "TlsConfig",
    "host_from_config",
    "load",
    "schema",
]
