"""Run a command until it ends, or until the process that started this one has gone.

Not imported: `TritonServer` runs it as a program, since Triton itself does not watch its stdin.
The first line it prints is the command's process id. SIGTERM is passed on; everything the command
has started ends with it, and its shared memory is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def main() -> int:
    """Run ``sys.argv[2:]``; ``sys.argv[1]`` is how its shared memory's names begin."""
    prefix, *command = sys.argv[1:]
    child = subprocess.Popen(  # noqa: S603 - what TritonServer asked for
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_this_process,  # noqa: PLW1509 - no thread has been started
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=_end_with_stdin, args=(child.pid,), daemon=True).start()
    print(child.pid, flush=True)
    returncode = child.wait()
    _kill_all(child.pid)
    for left in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 - where Triton puts them
        left.unlink(missing_ok=True)
    return returncode if returncode >= 0 else 128 - returncode


def _end_with_this_process() -> None:
    """Have the kernel kill the command should this process be killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end_with_stdin(group: int) -> None:
    """Kill the command once whoever holds the other end of stdin has gone, however it went."""
    while os.read(0, 4096):
        pass
    _kill_all(group)


def _kill_all(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
