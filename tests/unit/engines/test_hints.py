"""What enables a lacking feature is not told where the adapter never translates it."""

from __future__ import annotations

import pytest

from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.extensions import FEATURES
from worker_adapters.testing.conformance._hints import hint


@pytest.mark.parametrize("name", ENGINES)
def test_no_flag_of_a_server_is_said_to_bring_what_is_never_sent(name: str) -> None:
    for feature in FEATURES - adapter_class(name).translates:
        said = hint(name, feature)
        assert said is None or not said.startswith("--"), f"{feature}: {said}"
