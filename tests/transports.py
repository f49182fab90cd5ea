"""Both transports under test: a suite marked with `both_transports` runs once over each."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import pytest

Transport: TypeAlias = Literal["native", "httpx"]

TRANSPORTS: Final[tuple[Transport, ...]] = ("native", "httpx")

both_transports = pytest.mark.usefixtures("transport")
on_native = pytest.mark.parametrize("transport", ["native"], indirect=True)
"""For a test of such a suite that says something of native streams alone."""
on_httpx = pytest.mark.parametrize("transport", ["httpx"], indirect=True)
"""For one that says something of streams over httpx alone."""
