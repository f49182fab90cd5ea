"""The command ``worker-adapters``. See docs/cli.md."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> int:
    """Entry point of the command: the exit status, unless it leaves by SystemExit.

    Works without the extra ``[cli]``, which it then says how to install.
    """
    try:
        return _main()
    except KeyboardInterrupt:
        # While something is imported; what a command has open, it closes itself.
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:
        return _not_written(error)
    except SystemExit as leaving:
        # How typer leaves when the reader of a help text has gone.
        if isinstance(leaving.__context__, BrokenPipeError):
            return _not_written(leaving.__context__)
        raise


def _main() -> int:
    if _is_closed(sys.stderr):
        # Whoever closes it wants to hear nothing, and may have it.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - to the end
    if _is_closed(sys.stdout):
        sys.stderr.write("worker-adapters: cannot write to stdout: it is closed\n")
        return 1
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


def _is_closed(stream: object) -> bool:
    # So Python shows a descriptor that was closed when it started; typeshed does not know.
    return stream is None


def _not_written(error: OSError) -> int:
    from worker_adapters.cli._console import FAILED, PIPE_CLOSED, let_go_of_stdout

    let_go_of_stdout()
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    sys.stderr.write(f"worker-adapters: cannot write: {error.strerror or error}\n")
    return FAILED
