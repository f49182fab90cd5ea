"""The command ``worker-adapters``. See docs/cli.md."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> int:
    """Entry point of the command: the exit status.

    Works without the extra ``[cli]``, which it then says how to install.
    """
    missing = [package for package in ("typer", "rich") if find_spec(package) is None]
    if missing:
        sys.stderr.write(
            f"worker-adapters: the command line needs {' and '.join(missing)}; install it with\n\n"
            "    pip install 'worker-adapters[cli]'\n\n"
            "The library itself works without.\n"
        )
        return 2
    from worker_adapters.cli._app import app

    app(prog_name="worker-adapters")
    return 0
