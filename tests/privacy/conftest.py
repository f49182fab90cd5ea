"""Watching at the most verbose level there is."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import command
from tests.privacy.shown import Shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["command", "shown"]


@pytest.fixture
async def shown(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Shown]:
    """Watch at the most verbose level; afterwards nothing of the canaries may have shown."""
    asyncio.get_running_loop().set_debug(True)
    caplog.set_level(logging.DEBUG)
    before = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    for name in (*before, "asyncio", "httpx", "httpcore", "worker_adapters"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    watched = Shown(caplog)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield watched
        gc.collect()
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    watched.add(*(row.message for row in warned))
    watched.check()
    watched.close()
