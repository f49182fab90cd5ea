"""The real Prometheus server and its promtool, from Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest

START_SECONDS: Final = 30.0
WITHIN: Final = 30.0

CONFIGURATION: Final = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: worker-adapters
    static_configs: [targets: ["{target}"]]
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the package's programs are."""

    prometheus: str
    promtool: str


def installed() -> Installation:
    """Return where Prometheus is; skip the test, or fail it where ``REQUIRE_PROMETHEUS=1``.

    With that, and as root, the package is installed if need be.
    """
    required = os.environ.get("REQUIRE_PROMETHEUS") == "1"
    if shutil.which("promtool") is None and required:
        _install()
    server, tool = shutil.which("prometheus"), shutil.which("promtool")
    if server is not None and tool is not None:
        return Installation(server, tool)
    reason = "no Prometheus: apt-get install prometheus"
    if required:
        pytest.fail(reason)
    pytest.skip(reason)


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "prometheus")
    if subprocess.run(install, env=environment, capture_output=True, check=False).returncode:
        # The lists may be missing, or old.
        subprocess.run(("apt-get", "update", "-qq"), capture_output=True, check=False)
        done = subprocess.run(install, env=environment, capture_output=True, check=False, text=True)
        if done.returncode:
            pytest.fail(f"apt-get cannot install prometheus: {done.stderr[-500:]}")


class Prometheus:
    """A server that scrapes ``target``, ``host:port``, under the rules of a file."""

    def __init__(self, program: str, folder: Path, target: str, rules: Path) -> None:
        configuration = folder / "prometheus.yml"
        configuration.write_text(CONFIGURATION.format(rules=rules, target=target))
        self._log = (folder / "log").open("w+")
        self._command = (
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
            "--enable-feature=exemplar-storage",
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(trust_env=False, timeout=10.0)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)
        until = time.monotonic() + START_SECONDS
        while (port := self._port()) is None or not self._is_ready(port):
            assert time.monotonic() < until, self._said()
            assert self._process.poll() is None, self._said()
            time.sleep(0.05)
        self._http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the HTTP API and return the ``data`` of its answer."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        answer.raise_for_status()
        return answer.json()["data"]

    def value(self, query: str) -> float | None:
        """Return what an instant query finds, if it finds one series."""
        found = self.get("query", query=query)["result"]
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def eventually(self, what: str, condition: Any) -> None:
        """Wait until ``condition()`` is true."""
        until = time.monotonic() + WITHIN
        while not condition():
            assert time.monotonic() < until, f"{what}: {self._said()}"
            time.sleep(0.05)

    def _said(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read()[-2000:]

    def _port(self) -> int | None:
        assert self._process is not None
        return listening(self._process.pid)

    def _is_ready(self, port: int) -> bool:
        try:
            return self._http.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
        except httpx.TransportError:
            return False


def listening(pid: int) -> int | None:
    """Return the port on 127.0.0.1 that a process listens at."""
    try:
        ends = [link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return None
    inodes = {end.removeprefix("socket:[").removesuffix("]") for end in ends}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].partition(":")[2], 16)
    return None
