"""The real Prometheus reads the metrics, and the rules of docs/observability work on them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.conftest import REPOSITORY
from tests.observability.prometheus import Installation, Prometheus, installed
from tests.unit.tasks import adapter, task
from worker_adapters import Metrics, SubmitContext
from worker_adapters.sync import SyncWorkerAdapter
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER: Final = REPOSITORY / "docs" / "observability"
RULES: Final = FOLDER / "rules.yml"
DASHBOARD: Final = FOLDER / "dashboard.json"

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"

_KEYWORDS: Final = {"by", "without", "and", "or", "unless", "on", "ignoring", "le"}
_NAME: Final = re.compile(r"(?<![\w$.:])[a-zA-Z_:][\w:]*(?!\w*\s*\()")


@pytest.fixture(scope="module")
def programs() -> Installation:
    return installed()


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Every name of a sample that may be scraped."""
    names = set()
    for name, kind, _, _ in Metrics(seconds=True).snapshot():
        names.add(name)
        if kind == "histogram":
            names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")}
    assert "tasks_started_total" in names
    return names


@contextlib.contextmanager
def served(metrics: Metrics) -> Iterator[str]:
    """Serve the metrics as OpenMetrics and yield ``host:port``."""

    class Scraped(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.render().encode()
            self.send_response(200)
            self.send_header("Content-Type", Metrics.content_type())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a scrape that was given up
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its own name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Scraped)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_tasks(metrics: Metrics, count: int) -> None:
    """Have a scripted engine serve tasks of 3 tokens."""
    context = SubmitContext(traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    with scripted_engine("llamacpp", pieces=("said",)) as engine:
        made = adapter(engine.url, pool_id="chat", replica_id="0", metrics=metrics)
        with SyncWorkerAdapter(made) as client:
            for _ in range(count):
                client.submit(task(max_tokens=3), context=context).collect()


def test_a_server_scrapes_it_and_alerts(programs: Installation, tmp_path: Path) -> None:
    metrics = Metrics()
    run_tasks(metrics, 2)
    replica = metrics.replica("llamacpp", "chat", "0")
    replica.set_breaker("open")
    with (
        served(metrics) as target,
        Prometheus(programs.prometheus, tmp_path, target, RULES) as server,
    ):
        query = 'sum(tokens_out_total{pool_id="chat"})'
        server.eventually("a scrape", lambda: server.value(query) == 6)
        assert server.value("sum(tasks_started_total)") == 2
        assert server.value('latency_first_token_ms_bucket{le="+Inf"}') == 2
        (scraped,) = server.get("targets")["activeTargets"]
        assert (scraped["health"], scraped["lastError"]) == ("up", "")
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        assert rules
        server.eventually("a rule's value", lambda: server.value("pool:tasks_started:rate5m") == 0)

        def firing() -> set[tuple[str, str]]:
            return {
                (alert["labels"]["alertname"], alert["state"])
                for alert in server.get("alerts")["alerts"]
            }

        server.eventually("an alert", lambda: ("WorkerBreakerOpen", "firing") in firing())
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
        exemplars = server.get(
            "query_exemplars", query="latency_first_token_ms_bucket", start="0", end="9999999999"
        )
        traces = {one["labels"]["trace_id"] for row in exemplars for one in row["exemplars"]}
        assert traces == {TRACE}
        replica.set_breaker("closed")
        server.eventually("the alert ends", lambda: not firing())


def test_promtool_finds_nothing_but_the_contract_s_units(programs: Installation) -> None:
    metrics = Metrics(seconds=True)
    run_tasks(metrics, 1)
    done = subprocess.run(
        [programs.promtool, "check", "metrics"],
        input=metrics.render(openmetrics=False),
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in (done.stdout + done.stderr).splitlines() if line]
    assert found
    for line in found:
        # It would have them in seconds; the contract has them in milliseconds.
        assert re.fullmatch(r"(latency_decode_ms|latency_first_token_ms) .*\bunits?\b.*", line)


def test_the_rules_hold_and_fire(programs: Installation) -> None:
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]):
        done = subprocess.run(
            [programs.promtool, *command], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r"alertname: (\w+)", (FOLDER / "rules.test.yml").read_text()))
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text()))


def test_the_rules_name_what_is_exported(exported: set[str]) -> None:
    text = RULES.read_text()
    recorded = set(re.findall(r"record: (\S+)", text))
    expressions = re.findall(r"expr: (?:\|\n((?: {10,}.*\n)+)|(.+))", text)
    assert len(expressions) == text.count("expr:")
    used = {name for block, line in expressions for name in names_in(block or line)}
    assert used <= exported | recorded
    assert "tasks_started_total" in used


def test_the_dashboard_names_what_is_exported(exported: set[str]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [one["expr"] for panel in dashboard["panels"] for one in panel.get("targets", ())]
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert set(variables) == {"datasource", "engine", "pool", "replica"}
    queries = [
        one["definition"].removeprefix("label_values(").rpartition(",")[0]
        for name, one in variables.items()
        if name != "datasource"
    ]
    used = {name for expression in (*targets, *queries) for name in names_in(expression)}
    assert used <= exported
    assert {"latency_first_token_ms_bucket", "queue_depth", "breaker_state"} <= used


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (a, b) (rate(c_total{d=~"$e",f="g"}[5m])) / h', {"c_total", "h"}),
        ("histogram_quantile(0.95, sum by (le) (rate(x_bucket[$__rate_interval])))", {"x_bucket"}),
        ("pool:x:rate5m > 0.05 and on (y) z == 0", {"pool:x:rate5m", "z"}),
    ],
)
def test_names_are_found(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


def names_in(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression names."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expression)
    bare = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return {
        found[0]
        for found in _NAME.finditer(bare)
        if found[0] not in _KEYWORDS and not bare[found.end() :].lstrip().startswith("(")
    }
