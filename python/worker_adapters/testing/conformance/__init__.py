"""Whether an adapter, and the server behind it, keep to the contract.

`CHECKS` are asynchronous functions over a `Subject`, which says how to make an adapter for a server
that is up. They need no engine in particular and no test framework: `run_checks` makes a `Report`
of them (``worker-adapters certify`` prints it), and the pytest plugin makes a test of each.
`check_recording` does the same with recorded exchanges. See docs/conformance.md.
"""

from worker_adapters.testing.conformance._checks import CHECKS
from worker_adapters.testing.conformance._laws import check_error, check_events, check_rendering
from worker_adapters.testing.conformance._pytest import ConformanceCheck
from worker_adapters.testing.conformance._recordings import check_recording, find_recordings
from worker_adapters.testing.conformance._report import Lack, Report, named, run_checks
from worker_adapters.testing.conformance._subject import (
    Check,
    CheckFailed,
    CheckLacking,
    CheckSkipped,
    Connect,
    Result,
    Subject,
    expect,
    lacking,
    skip,
)

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "CheckLacking",
    "CheckSkipped",
    "ConformanceCheck",
    "Connect",
    "Lack",
    "Report",
    "Result",
    "Subject",
    "check_error",
    "check_events",
    "check_recording",
    "check_rendering",
    "expect",
    "find_recordings",
    "lacking",
    "named",
    "run_checks",
    "skip",
]
