"""A host of its own for an engine: a network namespace at the far end of a cable that can be cut.

Only root may make one, and only where the kernel has them.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000

_numbers = itertools.count(1)


class Far:
    """The far end: a namespace, and the cable that leads to it."""

    def __init__(self, name: str, subnet: str) -> None:
        self.name = name
        self.near, self.address = f"{subnet}.1", f"{subnet}.2"
        self.device = f"{name}-far"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Make sockets there: what is opened in this block, in this thread, belongs there."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)
            os.close(there)

    def cut(self) -> None:
        """Pull the cable: no packet comes or goes any more, and nobody is told."""
        run("ip", "-n", self.name, "link", "set", self.device, "down")

    def impair(self, *discipline: str) -> None:
        """Have what the far end sends pass by that queueing discipline; see tc(8)."""
        run("tc", "-n", self.name, "qdisc", "replace", "dev", self.device, "root", *discipline)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def run(*command: str) -> None:
    """Run a command. Raises OSError with what it says when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def far_end() -> Iterator[Far]:
    """Make a far end and take it away again; skips the test where that is not possible."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the ip command, for a network namespace")
    number = next(_numbers)
    name = f"wa{os.getpid() % 100_000}x{number}"
    subnet = f"10.{200 + number % 50}.{os.getpid() % 250}"
    far, near = Far(name, subnet), f"{name}-n"
    try:
        run("ip", "netns", "add", name)
    except OSError as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    try:
        try:
            run("ip", "link", "add", near, "type", "veth", "peer", far.device, "netns", name)
        except OSError as error:
            pytest.skip(f"no cable can be laid here: {error}")
        run("ip", "addr", "add", f"{far.near}/30", "dev", near)
        run("ip", "link", "set", near, "up")
        run("ip", "-n", name, "addr", "add", f"{far.address}/30", "dev", far.device)
        run("ip", "-n", name, "link", "set", far.device, "up")
        yield far
    finally:
        # With its near end the far one goes, and what is still on the line.
        with contextlib.suppress(OSError):
            run("ip", "link", "del", near)
        run("ip", "netns", "del", name)
