"""The JSON Schema of a configuration, for editors and checks."""

from typing import Any, Final

from worker_adapters.config.model import VERSION, Configuration

__all__ = ["schema"]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Return it; docs/schemas/config-v1.json is this."""
    described = Configuration.model_json_schema()
    described["title"] = f"worker-adapters configuration, version {VERSION}"
    return {"$schema": DIALECT, "$id": f"urn:worker-adapters:config:v{VERSION}", **described}
