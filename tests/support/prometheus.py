"""A real Prometheus over a service, and its rule checker."""

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster/monitoring"
VARIABLE = "PROMETHEUS_BIN"  # a folder with prometheus and promtool, where they are not on the PATH


def program(name: str) -> str:
    """Path of prometheus or promtool; skips the test without it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get(VARIABLE, ""), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed: `apt-get install prometheus`, or set {VARIABLE} to its folder")
    return found


class Prometheus:
    """Runs on a free port until closed. discovery: the file in which Ray lists its metrics ports."""

    def __init__(self, folder: Path, port: int, discovery: Path) -> None:
        text = (MONITORING / "prometheus.yml").read_text()
        assert text.count("/tmp/ray/prom_metrics_service_discovery.json") == 1
        text = text.replace("/tmp/ray/prom_metrics_service_discovery.json", str(discovery))
        assert text.count("scrape_interval: 5s") == 1
        (folder / "prometheus.yml").write_text(text.replace("scrape_interval: 5s", "scrape_interval: 2s"))
        shutil.copy(MONITORING / "alerts.yml", folder)
        self.url = f"http://127.0.0.1:{port}"
        self._log = (folder / "prometheus.log").open("w+")
        self._process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str, **query: str) -> Any:
        """`data` of an answer of its API; waits until it is up."""
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}") as answer:
                    return json.load(answer)["data"]
            except OSError:
                assert self._process.poll() is None, self.log()
                time.sleep(0.3)
        raise AssertionError(self.log())

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples of an expression now, but for those that are no number."""
        found = self.get("query", query=expression)["result"]
        return [sample for sample in found if sample["value"][1] != "NaN"]

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def dashboard() -> dict[str, Any]:
    """The dashboard for Grafana."""
    found: dict[str, Any] = json.loads((MONITORING / "grafana/dashboards/medusa_dist.json").read_text())
    return found


def expressions() -> list[tuple[str, str]]:
    """(title of the panel and letter of the query, expression as Grafana would send it)."""
    return [
        (
            f"{panel['title']} {target['refId']}",
            target["expr"].replace("$model", ".*").replace("$__rate_interval", "30s"),
        )
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]
