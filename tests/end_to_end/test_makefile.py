"""Where `make` takes torch from: the recipe runs with a pip that only says how it was called."""

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Index(BaseHTTPRequestHandler):
    """A package index that has torch."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/torch/" else 404)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def index():
    server = HTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def environment() -> dict[str, str]:
    """Ours without what a make above this run hands down, and without the variables that the recipes read."""
    ours = ("TORCH", "TORCH_INDEX", "TORCH_CPU_INDEX", "NVIDIA_GPU", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GPU_BENCH")
    return {key: value for key, value in os.environ.items() if key not in ours and not key.endswith("_proxy")}


def pip_call(folder: Path, *settings: str, path: str = "") -> str:
    """What `make` asks of pip where torch is not installed yet."""
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in (("python", f'exec {sys.executable} "$@"'), ("pip", 'echo "pip: $@"')):
        (programs / name).write_text(f"#!/bin/sh\n{words}\n")
        (programs / name).chmod(0o755)
    env = environment()
    env["PATH"] = f"{path}:{env['PATH']}"
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "VENV=venv", "venv/torch", *settings],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (call,) = re.findall(r"^pip: (?:--disable-pip-version-check )?(.*)$", done.stdout, re.MULTILINE)
    return call


def test_make_gpu_runs_the_marked_tests_and_then_the_measurement():
    command = ["make", "-n", "gpu", "VENV=venv", "GPU_BENCH=--shape tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=True)
    *_, tests, bench = done.stdout.splitlines()
    assert tests.startswith("venv/bin/pytest -m gpu")
    assert bench == "venv/bin/python -m medusa_dist.bench.gpu_bench --shape tiny"


def test_without_a_gpu_torch_comes_from_the_cpu_index(tmp_path, index):
    call = pip_call(tmp_path, "NVIDIA_GPU=no", f"TORCH_CPU_INDEX={index}", "TORCH=torch==1.2.3")
    assert call == f"install torch==1.2.3 --index-url {index}"


def test_unreachable_cpu_index_is_left_out(tmp_path, index):
    call = pip_call(tmp_path, "NVIDIA_GPU=no", f"TORCH_CPU_INDEX={index}/nowhere", "TORCH=torch==1.2.3")
    assert call == "install torch==1.2.3"


def test_torch_index_variable_is_passed_to_pip(tmp_path, index):
    call = pip_call(
        tmp_path, "NVIDIA_GPU=no", f"TORCH_CPU_INDEX={index}", "TORCH_INDEX=http://other", "TORCH=torch==1.2.3"
    )
    assert call == "install torch==1.2.3 --index-url http://other"


def test_with_nvidia_smi_torch_comes_from_pips_own_index(tmp_path, index):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    call = pip_call(tmp_path, f"TORCH_CPU_INDEX={index}", "TORCH=torch==1.2.3", path=str(tmp_path))
    assert call == "install torch==1.2.3"
