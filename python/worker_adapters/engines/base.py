"""What an adapter for another engine is built from.

`HttpAdapter` does everything that engines behind HTTP have in common: clocks, retries of nothing
that was sent, errors, cancelling, health, capabilities. A subclass says where the routes are, what
a request looks like and what an answer means, by overriding the methods under "What an engine's own
module says"; their names begin with an underscore because no caller of an adapter needs them.
``docs/third-party-engines.md`` has a whole example.
"""

from worker_adapters._core import ErrorRules
from worker_adapters.capabilities import Feature
from worker_adapters.engines._call import Call
from worker_adapters.engines._dispatch import Answer, Dispatch, Unsupported
from worker_adapters.engines._http import HttpAdapter
from worker_adapters.transport import Headers, Request

__all__ = [
    "Answer",
    "Call",
    "Dispatch",
    "ErrorRules",
    "Feature",
    "Headers",
    "HttpAdapter",
    "Request",
    "Unsupported",
]
