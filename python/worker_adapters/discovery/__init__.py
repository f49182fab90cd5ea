"""What pool-managerd and orchestratord learn of replicas, and how they learn it.

`Capabilities` is the document behind ``/v1/capabilities``; `Readiness` makes the records that a
pool manager keeps; `Registrar` registers replicas with the orchestrator and pushes their records;
`BearerAuth` is the other side's check of who does. See docs/discovery.md.
"""

from worker_adapters.discovery.auth import AuthError, BearerAuth, identity_of
from worker_adapters.discovery.document import Capabilities, capabilities_schema
from worker_adapters.discovery.readiness import (
    Health,
    PerfHints,
    Readiness,
    ReadinessRecord,
)
from worker_adapters.discovery.registrar import Registrar, Registration, RegistrationError

__all__ = [
    "AuthError",
    "BearerAuth",
    "Capabilities",
    "Health",
    "PerfHints",
    "Readiness",
    "ReadinessRecord",
    "Registrar",
    "Registration",
    "RegistrationError",
    "capabilities_schema",
    "identity_of",
]
