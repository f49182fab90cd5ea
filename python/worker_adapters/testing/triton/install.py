"""Install the Triton server that the nvidia-pytriton wheel carries; a program and a function.

    python -m worker_adapters.testing.triton.install        # also what the system lacks, when root

It needs 250 MB of disk below the cache directory, one download of 55 MB (numpy: 18 MB more), a
CPython 3.11, and ``libpython3.11.so.1.0``, which the server's python backend is linked to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker_adapters.testing.llamacpp import EngineNotInstalledError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EngineNotInstalledError", "Installation", "install", "why_unavailable"]

REQUIREMENTS: Final = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
"""Without dependencies: only the server is used. With numpy 2 its python backend dies."""

PYTHON: Final = "3.11"
"""What the backend is linked to, and therefore what the models run on."""

LIBRARY: Final = f"libpython{PYTHON}.so.1.0"
PACKAGE: Final = f"libpython{PYTHON}"
"""Debian's package of that library."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the parts of an installed server are."""

    root: Path

    @property
    def venv(self) -> Path:
        """The virtual environment that the wheel is in."""
        return self.root / "venv"

    @property
    def _site(self) -> Path:
        return self.venv / "lib" / f"python{PYTHON}" / "site-packages"

    @property
    def server(self) -> Path:
        """The program."""
        return self._site / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """For ``--backend-directory``: the python backend, complete."""
        return self.root / "backends"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the program needs, beside those there are."""
        libraries = [str(self._site / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH")]
        return {
            # Its libraries were moved by the wheel, and its backend by us.
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            # The backend takes its packages from the first python3 on the path.
            "PATH": f"{self.venv / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        }

    def _is_complete(self) -> bool:
        return (self.root / "complete").exists()

    def _fill(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        _run(_python(), "-m", "venv", str(self.venv))
        pip = (str(self.venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
        _run(*pip, "install", "--quiet", "--no-deps", "--only-binary=:all:", *REQUIREMENTS)
        shipped = self._site / "pytriton" / "tritonserver"
        backend = self.backends / "python"
        backend.mkdir(parents=True)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy2(shipped / "backends" / "python" / name, backend)
        # The wheel keeps one per version of Python, elsewhere than where it is looked for.
        shutil.copy2(
            shipped / "python_backend_stubs" / PYTHON / "triton_python_backend_stub", backend
        )
        (self.root / "complete").touch()


def install(*, system_packages: bool = False) -> Installation:
    """Install the server below the cache directory unless it is there, and return where.

    ``system_packages`` allows ``apt-get install libpython3.11`` where that library is missing and
    the caller is root. Raises EngineNotInstalledError, saying what is missing.
    """
    reason = why_unavailable(system_packages=system_packages)
    if reason is not None:
        raise EngineNotInstalledError(reason)
    if not _has_library():
        _apt_install()
    installation = Installation(_cache_dir() / "-".join(REQUIREMENTS[0].split("==")))
    with _locked(installation.root.with_suffix(".lock")):
        if not installation._is_complete():
            try:
                installation._fill()
            except BaseException:
                shutil.rmtree(installation.root, ignore_errors=True)
                raise
    return installation


def why_unavailable(*, system_packages: bool = False) -> str | None:
    """Return why the server cannot run here, in a sentence; None if nothing is known against it."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the Triton server of the nvidia-pytriton wheel runs on Linux on x86-64 only"
    if _find_python() is None:
        return f"Triton's python backend needs a CPython {PYTHON}: put python{PYTHON} on the PATH"
    if _has_library():
        return None
    if shutil.which("apt-get") is None:
        return f"Triton's python backend needs {LIBRARY}, which this system does not have"
    if not system_packages or os.geteuid() != 0:
        return (
            f"Triton's python backend needs {LIBRARY}: as root, "
            f"apt-get install {PACKAGE} or python -m worker_adapters.testing.triton.install"
        )
    return None


def _find_python() -> str | None:
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        return sys.executable
    return shutil.which(f"python{PYTHON}")


def _python() -> str:
    python = _find_python()
    if python is None:
        raise EngineNotInstalledError(f"python{PYTHON} is not on the PATH")
    return python


def _has_library() -> bool:
    """Ask the loader, in a process of its own: a second libpython in this one does no good."""
    probe = f"import ctypes; ctypes.CDLL({LIBRARY!r})"
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - ours
    return done.returncode == 0


def _apt_install() -> None:
    _run("apt-get", "-qq", "update")
    _run("apt-get", "-qq", "install", "--yes", "--no-install-recommends", PACKAGE)
    if not _has_library():
        raise EngineNotInstalledError(f"{PACKAGE} is installed, and {LIBRARY} still not found")


def _run(*command: str) -> None:
    """Run a command quietly. Raises EngineNotInstalledError with the end of what it said."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(  # noqa: S603 - commands of this file
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        said = "\n".join(done.stdout.splitlines()[-15:])
        raise EngineNotInstalledError(f"{' '.join(command)} failed:\n{said}")


def _cache_dir() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME")
    base = Path(configured) if configured else Path.home() / ".cache"
    directory = base / "worker-adapters" / "triton"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        directory = Path(tempfile.gettempdir()) / f"worker-adapters-{os.getuid()}" / "triton"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file: two processes may want to install at the same time."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(install(system_packages=True).server)
    except EngineNotInstalledError as error:
        sys.exit(str(error))
