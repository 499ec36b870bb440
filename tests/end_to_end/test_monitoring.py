"""The files in cluster/monitoring: alerts fire, and a real Prometheus finds data for every panel under load."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.support.prometheus import MONITORING, ROOT, Prometheus, dashboard, expressions, program
from tests.support.served import Served, free_port, without_ray
from tests.support.tiny_llm import save_llm


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def metric_names() -> set[str]:
    """Every name that serve/metrics.py and serve/rank.py can export, as Prometheus sees it."""
    source = (ROOT / "medusa_dist/serve/metrics.py").read_text()

    def named(call: str) -> list[str]:
        return re.findall(rf"\._{call}\(\s*\"(\w+)\"", source)

    names = {f"ray_medusa_dist_{name}_total" for name in named("count")}
    names |= {
        f"ray_{name}" for name in re.findall(r"\"(medusa_dist_\w+)\"", (ROOT / "medusa_dist/serve/rank.py").read_text())
    }
    names |= {f"ray_medusa_dist_{name}" for name in named("gauge")}
    return names | {
        f"ray_medusa_dist_{name}_{part}" for name in named("histogram") for part in ("bucket", "sum", "count")
    }


def ours(text: str) -> set[str]:
    return set(re.findall(r"ray_medusa_dist_\w+", text))


def test_dashboard_shows_only_metrics_that_exist() -> None:
    board = dashboard()
    used = ours(" ".join(expression for _, expression in expressions()))
    assert len(used) > 20
    assert used <= metric_names()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {one["uid"] for one in source["datasources"]}


def test_dashboard_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not mine & cells, panel["title"]
        cells |= mine


def test_dashboard_has_nothing_that_grafanas_schema_does_not_know() -> None:
    """Grafana's own types read it, and write it again without losing a key."""
    known = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="pip install grafana-foundation-sdk")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins")
    plugins.register_default_plugins()
    board = dashboard()
    again = json.loads(encoder.JSONEncoder(sort_keys=True).encode(known.Dashboard.from_json(board)))
    assert not lost(board, again)


def lost(given: Any, kept: Any, where: str = "") -> list[str]:
    """Where `kept` lacks a part of `given`."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return [where]
        return [
            item
            for key, value in given.items()
            for item in (lost(value, kept[key], f"{where}.{key}") if key in kept else [f"{where}.{key}"])
        ]
    if isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            return [where]
        return [item for i, value in enumerate(given) for item in lost(value, kept[i], f"{where}[{i}]")]
    return [] if given == kept else [where]


def test_alerts_use_metrics_that_exist_and_each_has_its_section_in_the_docs() -> None:
    text = (MONITORING / "alerts.yml").read_text()
    assert ours(text) <= metric_names() and len(alerts()) >= 6
    page = (ROOT / "docs/operations.md").read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    for name, rule in alerts().items():
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "docs/operations.md" and anchor in anchors, name
        assert name in page, "the page names the alert"
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_alerts_are_mounted_where_prometheus_looks_for_them() -> None:
    (file,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"]
    service = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]["prometheus"]
    assert f"./{file}:/etc/prometheus/{file}:ro" in service["volumes"] and (MONITORING / file).is_file()


def test_every_alert_fires_and_stays_silent_in_promtools_tests() -> None:
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    seen = [(one["alertname"], bool(one["exp_alerts"])) for case in cases for one in case["alert_rule_test"]]
    for name in alerts():
        assert (name, True) in seen and (name, False) in seen, f"{name}: fire it once, and not"
    done = subprocess.run(
        [program("promtool"), "test", "rules", "alerts_test.yml"],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- a real Prometheus over a real service ---

LIMIT_S = 900  # no claim about speed: only that a test which hangs comes to an end

CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: tiny
    route_prefix: /
    import_path: medusa_dist.app:build_app
    args:
      model: {model}
      served_model_name: tiny
      heads: {{source: {model}/heads}}
      speculation: {{mode: auto, max_nodes: 3}}
      dtype: float32
      device: cpu
      tensor_parallel_size: 2
      log_format: json
      max_running: 3
      max_batched_tokens: 32
      kv_cache_tokens: 256
      files: {{store: {store}}}
      resources: {{cpus_per_rank: 0.1, front_cpus: 0.1, threads_per_rank: 1}}
    deployments:
      - {{name: Medusa, ray_actor_options: {{num_cpus: 0.1}}}}
"""


class Load:
    """Calls from several threads, and batches, until it is left."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=20, timeout=LIMIT_S)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(4)]
        self._threads.append(threading.Thread(target=self._batches, args=(folder,)))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _call(self, number: int) -> None:
        while not self._over.is_set():
            prompt = f"{number} " * 10
            stream = self.client.completions.create(
                model="tiny", prompt=prompt, max_tokens=90, stream=True, temperature=0, extra_body={"ignore_eos": True}
            )
            for _ in stream:
                pass
            self._over.wait(1.0)  # places for batches, which come after all calls

    def _batches(self, folder: Path) -> None:
        body = {"model": "tiny", "prompt": "batch", "max_tokens": 20}
        lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body} for i in range(20)]
        lines += [{**lines[0], "custom_id": "bad", "body": body | {"temperature": -1}}]
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        while not self._over.is_set():
            with (folder / "in.jsonl").open("rb") as file:
                uploaded = self.client.files.create(file=file, purpose="batch")
            self.client.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
            self._over.wait(15)


@contextmanager
def stack(folder: Path) -> Iterator[tuple[Served, Prometheus, str]]:
    """A service, a Prometheus that finds it by Ray's file, and the service's URL."""
    program("prometheus")
    port = free_port()
    (folder / "serve.yaml").write_text(
        CONFIG.format(port=port, model=save_llm(folder / "model"), store=folder / "store")
    )
    environment = without_ray(HOME=str(folder), RAY_TMPDIR=str(folder), PYTHONPATH=str(ROOT))
    served = Served([sys.executable, "-m", "medusa_dist.cli.main"], folder / "serve.yaml", folder, environment)
    try:
        served.read_until("ready after", LIMIT_S)
        prometheus = Prometheus(folder, free_port(), folder / "ray/prom_metrics_service_discovery.json")
        try:
            yield served, prometheus, f"http://127.0.0.1:{port}"
        finally:
            prometheus.close()
    finally:
        served.end()


def rank_of(served: Served) -> int:
    """The process of a rank. Ray names a process after its actor and the method that it called last."""
    for pid in served.offspring():
        if re.match(rb"ray::.*Rank", Path(f"/proc/{pid}/cmdline").read_bytes()):
            return pid
    raise AssertionError("no rank")


def check_logs(folder: Path) -> None:
    """Of replicas and ranks: JSON, one object a line, with ids that lead from one to the other, and no prompt."""
    (replica,) = (folder / "serve").glob("replica_tiny_Medusa_*.log")
    ranks = [text for path in folder.glob("worker-*.err") if '"rank": 0' in (text := path.read_text())]
    front = [json.loads(line) for line in replica.read_text().splitlines()]
    rank = [json.loads(line) for text in ranks for line in text.splitlines() if line.startswith("{")]
    ended = {line["request"] for line in front if line["message"] == "a request ended"}
    assert ended and ended <= {line["request"] for line in rank if line["message"] == "a request arrives"}
    assert all("3 3 3 3" not in text for text in [replica.read_text(), *ranks]), "a prompt"


@pytest.mark.slow
def test_every_panel_has_data_in_a_real_prometheus_under_load() -> None:
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="md") as name,  # sockets of Ray want a short path
        stack(Path(name)) as (served, prometheus, url),
        Load(url, Path(name)),
    ):
        deadline = time.monotonic() + LIMIT_S
        while not prometheus.query("ray_medusa_dist_steps_total"):
            assert time.monotonic() < deadline, prometheus.log()
            time.sleep(1)
        os.kill(rank_of(served), signal.SIGKILL)  # a failure, for the panels that show failures
        empty = dict(expressions())
        while empty and time.monotonic() < deadline:
            time.sleep(2)
            empty = {panel: expression for panel, expression in empty.items() if not prometheus.query(expression)}
        assert not empty, empty
        targets = prometheus.get("targets")["activeTargets"]  # the node, and Ray's dashboard and autoscaler
        assert targets and {(target["health"], target["scrapePool"]) for target in targets} == {("up", "ray")}
        groups = prometheus.get("rules")["groups"]
        assert {rule["name"] for group in groups for rule in group["rules"]} >= set(alerts())
        assert all(rule["health"] == "ok" for group in groups for rule in group["rules"])
        assert prometheus.get("label/model/values", **{"match[]": "ray_medusa_dist_requests"}) == ["tiny"]
        top = subprocess.run(
            [sys.executable, "-m", "medusa_dist.cli.main", "top", "--address", url, "--interval", "5", "-n", "3"],
            capture_output=True,
            text=True,
            check=True,
            env=without_ray(PYTHONPATH=str(ROOT)),
        )
        check_logs(Path(name) / "ray/session_latest/logs")
        assert re.search(
            r"tiny: running \d.* tokens/s.*generations [1-9]\d*, [1-9]\d* failures", top.stdout.splitlines()[-1]
        )
