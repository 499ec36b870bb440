"""The files in cluster/: what they name exists, and nothing opens a door."""

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from medusa_dist.app import DEPLOYMENT
from medusa_dist.serve.config_file import read_serve_file
from medusa_dist.serve.http.proxy import IMPORT_PATH, VARIABLE

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
YAMLS = sorted(CLUSTER.rglob("*.y*ml"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_yaml_is_valid_and_exposes_no_unprotected_port(path: Path) -> None:
    text = path.read_text()
    assert [document for document in yaml.safe_load_all(text) if document]
    for line in text.splitlines():
        # The one exception is the API inside a Kubernetes pod, and that has a key.
        assert "0.0.0.0" not in line or "MEDUSA_DIST_API_KEY" in text
        assert not re.search(r"dashboard-host[ =:]+(?!127\.0\.0\.1)", line)


def test_kuberay_service_has_a_valid_config_that_its_pods_fit(tmp_path: Path) -> None:
    service = yaml.safe_load((CLUSTER / "kuberay/llama8b.yaml").read_text())["spec"]
    (tmp_path / "serve.yaml").write_text(service["serveConfigV2"])
    (config,) = read_serve_file(tmp_path / "serve.yaml", DEPLOYMENT).configs.values()
    workers = service["rayClusterConfig"]["workerGroupSpecs"][0]
    assert config.autoscaling is not None and config.autoscaling.max_replicas == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == config.tensor_parallel_size
    needed = config.resources.cpus_per_rank * config.tensor_parallel_size + config.resources.front_cpus
    assert int(container["resources"]["limits"]["cpu"]) >= needed
    assert service["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    image = re.search(r"rayproject/ray:([\d.]+)", (CLUSTER / "kuberay/Dockerfile").read_text())
    assert image is not None and image[1] == service["rayClusterConfig"]["rayVersion"]


def start_head(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run start_head.sh with a `ray` that only says how it was called."""
    fake = tmp_path / "ray"
    fake.write_text('#!/bin/sh\necho "ray $@"\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return subprocess.run(
        [str(CLUSTER / "start_head.sh"), *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_start_head_keeps_the_dashboard_local(tmp_path: Path) -> None:
    done = start_head(tmp_path, "--port", "6379", METRICS_PORT="9999")
    assert done.returncode == 0
    assert done.stdout.split()[:3] == ["ray", "start", "--head"]
    assert "--dashboard-host 127.0.0.1 --metrics-export-port 9999" in done.stdout and "--port 6379" in done.stdout


@pytest.mark.parametrize(("is_installed", "given"), [(True, None), (True, "mine:mine"), (False, None)])
def test_start_head_sets_the_proxy_hook_where_it_imports(tmp_path: Path, is_installed: bool, given: str | None) -> None:
    start_head(tmp_path)
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "<${VARIABLE}>"\n')
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable if is_installed else "false"} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "run").write_text((CLUSTER / "start_head.sh").read_text())
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {VARIABLE: given} if given else {}
    done = subprocess.run(["bash", tmp_path / "run"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"<{given or (IMPORT_PATH if is_installed else '')}>\n"


def test_cluster_files_name_the_proxy_hook() -> None:
    for name in ("start_head.sh", "aws.yaml", "kuberay/Dockerfile"):
        text = (CLUSTER / name).read_text()
        assert VARIABLE in text and IMPORT_PATH in text, name


@pytest.mark.parametrize("arguments", [("--dashboard-host", "0.0.0.0"), ("--dashboard-host=10.0.0.1",)])
def test_start_head_refuses_an_open_dashboard(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = start_head(tmp_path, *arguments)
    assert refused.returncode == 1 and not refused.stdout
    assert "RAY_AUTH_MODE=token" in refused.stderr
    assert start_head(tmp_path, *arguments, RAY_AUTH_MODE="token").returncode == 0
    assert start_head(tmp_path, *arguments, MEDUSA_DIST_OPEN_DASHBOARD="yes").returncode == 0


def test_systemd_unit_signals_the_server_alone_and_waits_longer_than_any_config_does() -> None:
    unit = ConfigParser()
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(CLUSTER / "systemd/medusa-dist.service")
    service = unit["Service"]
    assert service["KillMode"] == "mixed", "else Ray's processes are killed while streams are open"
    command, config = service["ExecStart"].rsplit(" ", 1)
    assert command.endswith("bin/medusa-dist serve") and (ROOT / config).is_file()
    waits = [
        deployment["graceful_shutdown_timeout_s"]
        for path in (ROOT / "serve_configs").glob("*.yaml")
        for application in yaml.safe_load(path.read_text())["applications"]
        for deployment in application["deployments"]
    ]
    assert len(waits) >= 5 and int(service["TimeoutStopSec"]) > max(waits) + 10
