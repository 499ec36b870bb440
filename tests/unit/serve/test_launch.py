"""`medusa-dist serve` as a user runs it: real Ray with its default security, real engine, a tiny model, two ranks."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.support.raw_http import H2C, request, talk
from tests.support.served import HANG_S, Served, free_port, without_ray
from tests.support.served_fake import until
from tests.support.tiny_models import save_tiny
from tests.support.tiny_tokenizers import byte_tokenizer

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    config = save_tiny("llama", folder).config
    config.max_position_embeddings = 128
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.9}')
    return folder


def write_config(folder: Path, model: object, port: int, **changes) -> Path:
    args = {
        "model": str(model),
        "dtype": "float32",
        "device": "cpu",
        "tensor_parallel_size": 2,
        "max_model_len": 128,
        "max_running": 4,
        "resources": {"cpus_per_rank": 0.3, "front_cpus": 0.2, "threads_per_rank": 1},
        **changes,
    }
    application = {"name": "tiny", "import_path": "medusa_dist.app:build_app", "args": args}
    path = folder / "serve.yaml"
    path.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
    )
    return path


def served(config: Path, home: Path, **env: str) -> Served:
    return Served([sys.executable, "-m", "medusa_dist.cli.main"], config, ROOT, without_ray(HOME=str(home), **env))


def command_line(pid: int) -> str:
    """Empty if the process ended meanwhile, as short-lived ones among the offspring do."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def answer(url: str, key: str | None, **more):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 24, "temperature": 0, "ignore_eos": True, **more}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=HANG_S)


def check_http(url: str, port: int, key: str) -> None:
    """What Serve's proxies and Ray's metrics add, as this command starts them."""
    call = json.dumps({"model": "tiny-llama", "prompt": "Once", "max_tokens": 3}).encode()
    upgrade = request("POST", "/v1/completions", f"{H2C}Authorization: Bearer {key}\r\n", call)
    assert [status for status, *_ in talk(port, upgrade, request("GET", "/live"))] == [200, 200]
    assert httpx.get(f"{url}/metrics", timeout=10).status_code == 401
    headers = {"authorization": f"Bearer {key}"}
    until(lambda: "ray_medusa_dist_tokens_total{" in httpx.get(f"{url}/metrics", headers=headers, timeout=10).text, 30)


def check_listeners(command: Served) -> None:
    """All on the loopback address, but for one port that Serve opens in each replica."""
    wide = []
    for pid in {command.process.pid, *command.offspring()}:
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(pid).net_connections("inet"):
                ip = ip_address(one.laddr.ip.removeprefix("::ffff:"))
                if one.status == psutil.CONN_LISTEN and not ip.is_loopback:
                    wide.append(command_line(pid)[:40])
    assert len(wide) == 1 and "ServeReplica" in wide[0], wide


def check_orderly_end(command: Served, url: str, key: str) -> None:
    """SIGTERM to the whole process group: a new call is refused, the open stream is finished, nothing is left."""
    body = {"model": "tiny-llama", "prompt": "Once", "max_tokens": 110, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {key}"}
    started = command.offspring()
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=HANG_S) as response:
        lines = response.iter_lines()
        events = [next(lines)]
        os.killpg(command.process.pid, signal.SIGTERM)
        command.read_until("waiting for open streams to finish")
        refused: set[object] = set()

        def is_refused() -> bool:
            try:
                refused.add(httpx.get(f"{url}/health", timeout=10).status_code)
            except httpx.TransportError as error:
                refused.add(type(error))
            return bool(refused - {200})

        until(is_refused, 10)
        events += lines
    assert events[-2:] == ["data: [DONE]", ""] and refused & {503, httpx.ConnectError}
    assert command.process.wait(60) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 15)


def test_ray_address_without_a_cluster_is_named_within_seconds(model, tmp_path):
    command = served(write_config(tmp_path, model, free_port()), tmp_path, RAY_ADDRESS="127.0.0.1:9")
    output, _ = command.process.communicate(timeout=HANG_S)
    assert command.process.returncode == 1
    assert "error: RAY_ADDRESS '127.0.0.1:9': no Ray cluster responds at this address: Connection refused" in output
    assert "Traceback" not in output and "ray" not in output.split("error:")[0].replace("starting Ray", "")


def test_serve_command_answers_survives_a_killed_rank_and_exits_0(model, tmp_path):
    port = free_port()
    command = served(write_config(tmp_path, model, port), tmp_path, MEDUSA_DIST_API_KEY="secret")
    try:
        command.read_until("Ctrl-C to stop")
        assert (
            "starting Ray" in command.output and "curl" in command.output and "Dashboard: http://127" in command.output
        )
        assert "use the model's generation_config.json: top_p 0.9" in command.output
        url = f"http://127.0.0.1:{port}"
        card = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer secret"}, timeout=HANG_S).json()
        assert card["data"][0]["default_sampling_params"] == {"top_p": 0.9}
        assert answer(url, None).status_code == 401
        before = answer(url, "secret").json()["choices"][0]["text"]
        check_http(url, port, "secret")
        ranks = [pid for pid in command.offspring() if "ray::Rank" in command_line(pid)]
        assert len(ranks) == 2
        os.kill(ranks[0], signal.SIGKILL)
        assert answer(url, "secret").json()["choices"][0]["text"] == before
        port_of_metrics = re.search(r"Metrics for Prometheus: http://127.0.0.1:(\d+)/metrics", command.output)
        assert port_of_metrics is not None
        assert "ray_" in httpx.get(f"http://127.0.0.1:{port_of_metrics[1]}/metrics", timeout=10).text
        check_listeners(command)
        check_orderly_end(command, url, "secret")
    finally:
        if command.process.poll() is None:
            command.end()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": "/no/such/model"}, "there is no folder /no/such/model"),
        ({"tensor_parallel_size": 5, "resources": {"cpus_per_rank": 0.1, "front_cpus": 0.1}}, "legal: 1"),
        ({"resources": {"cpus_per_rank": 500}}, "requested on one node: 1000.5 CPU"),
    ],
)
def test_service_that_cannot_start_prints_the_cause_and_exits_1(model, tmp_path, changes, text):
    command = served(write_config(tmp_path, changes.pop("model", model), free_port(), **changes), tmp_path)
    output, _ = command.process.communicate(timeout=HANG_S)
    assert command.process.returncode == 1
    assert re.search("^error: ", output, re.MULTILINE) and text in output
    assert "Traceback" not in output


def test_port_in_use_is_refused_before_ray_starts(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = served(write_config(tmp_path, model, taken.getsockname()[1]), tmp_path)
        output, _ = command.process.communicate(timeout=HANG_S)
    assert command.process.returncode == 1
    assert "http_options.port: cannot listen on" in output and "starting Ray" not in output
