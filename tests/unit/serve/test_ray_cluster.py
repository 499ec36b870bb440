import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from medusa_dist.errors import ConfigError
from medusa_dist.serve import ray_cluster as module
from medusa_dist.serve.ray_cluster import (
    ClusterAddress,
    cluster_address,
    free_metrics_port,
    join_cluster,
    run_while_ray_lives,
)


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        (None, "10.0.0.1:6379", ("10.0.0.1:6379", "RAY_ADDRESS")),
        ("10.0.0.2:6379", "10.0.0.1:6379", ("10.0.0.2:6379", "--address")),
        ("auto", None, ("auto", "--address")),
        ("auto", "10.0.0.1:6379", ("10.0.0.1:6379", "RAY_ADDRESS")),  # as Ray reads it
        ("local", "10.0.0.1:6379", None),
        (None, "local", None),
    ],
)
def test_cluster_address_is_the_option_before_ray_address(monkeypatch, option, variable, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(option) == (expected and ClusterAddress(*expected))


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1:{port}", "Connection refused"),
        ("localhost:{port}", "Connection refused"),
        ("ray://127.0.0.1:{port}", "Connection refused"),
        ("no.such.host.invalid:6379", "no.such.host.invalid"),
        ("127.0.0.1", "an address of a Ray cluster is HOST:PORT, auto, or ray://HOST:PORT"),
        ("127.0.0.1:x", "an address of a Ray cluster is HOST:PORT"),
        ("127.0.0.1:0", "an address of a Ray cluster is HOST:PORT"),
    ],
)
@pytest.mark.parametrize("origin", ["RAY_ADDRESS", "--address"])
def test_missing_cluster_is_named_with_the_origin_of_its_address(free_port, text, reason, origin):
    text = text.format(port=free_port)
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        join_cluster(ClusterAddress(text, origin))
    assert str(error.value).startswith(f"{origin} {text!r}: ") and reason in str(error.value)
    assert ("unset RAY_ADDRESS" in str(error.value)) == (origin == "RAY_ADDRESS" and "HOST:PORT" not in reason)
    assert time.monotonic() - began < 15


def test_another_server_at_the_address_is_told_from_ray(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 0.5)
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            for port in (web.server_port, silent.getsockname()[1]):
                with pytest.raises(ConfigError, match="what listens there is not Ray"):
                    join_cluster(ClusterAddress(f"127.0.0.1:{port}", "RAY_ADDRESS"))
    finally:
        web.shutdown()
        web.server_close()


def test_auto_without_any_ray_says_so(monkeypatch):
    monkeypatch.setattr(module.services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(module.services, "find_bootstrap_address", lambda folder: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"--address 'auto': .*: no Ray is running on this machine"):
        join_cluster(ClusterAddress("auto", "--address"))


def test_metrics_port_is_8080_or_a_free_one_and_never_the_services_own(monkeypatch, free_port):
    monkeypatch.setattr(module, "METRICS_PORT", free_port)
    assert free_metrics_port(None, set()) == free_port
    assert free_metrics_port(None, {free_port}) != free_port
    assert free_metrics_port(free_port, {1}) == free_port
    with pytest.raises(ConfigError, match=f"--metrics-port: .*{free_port}: it is the service's own port"):
        free_metrics_port(free_port, {free_port})
    with socket.create_server(("127.0.0.1", free_port)):
        assert free_metrics_port(None, set()) not in (free_port, 0)
        with pytest.raises(ConfigError, match=f"--metrics-port: .*{free_port}: Address already in use"):
            free_metrics_port(free_port, set())


def test_default_metrics_port_is_that_of_the_cluster_files():
    assert module.METRICS_PORT == 8080


class Node:
    """Stands for ray's own record of the processes that it started."""

    def __init__(self) -> None:
        self.dead: list[object] = []

    def dead_processes(self) -> list[object]:
        return self.dead


@pytest.fixture
def node(monkeypatch) -> Node:
    node = Node()
    monkeypatch.setattr(module.ray._private.worker, "_global_node", node)
    return node


def test_work_on_a_living_ray_is_waited_for_and_raises_its_error(node):
    done = []
    assert run_while_ray_lives(lambda: done.append(time.sleep(0.3))) and done
    with pytest.raises(KeyError, match="x"):
        run_while_ray_lives(lambda: {}["x"])


def test_work_on_a_dead_ray_is_left_behind(node):
    released = threading.Event()
    threading.Timer(0.2, lambda: node.dead.append("gcs_server")).start()
    began = time.monotonic()
    assert not run_while_ray_lives(lambda: released.wait(60))
    assert time.monotonic() - began < 30
    released.set()


def test_processes_started_for_ray_have_their_own_session_address_and_path(monkeypatch, tmp_path):
    """Of a stand-in for ray.init that starts a process as Ray does."""
    seen = {}

    def init(**options):
        child = module.services.ConsolePopen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        seen.update(options, session=os.getsid(child.pid), environment=dict(os.environ), address=node_address())
        child.kill()
        child.wait()
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def node_address() -> str:
        return module.services.get_node_ip_address()

    monkeypatch.setattr(module.ray, "init", init)
    monkeypatch.setattr(module.ray._private.worker, "_global_node", None)
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.delenv(module.LOOPBACK_VARIABLE, raising=False)
    outside, popen = node_address(), module.services.ConsolePopen
    handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        module.start_local_ray(dashboard=True, metrics_port=8123)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert seen["session"] != os.getsid(0) and seen["_metrics_export_port"] == 8123
    assert seen["environment"]["PATH"].split(":") == [str(Path(sys.executable).parent), "/somewhere"]
    assert seen["environment"][module.LOOPBACK_VARIABLE] == "0" and node_address() == outside
    assert seen["address"] == "127.0.0.1"
    assert os.environ["PATH"] == "/somewhere" and module.LOOPBACK_VARIABLE not in os.environ
    assert module.services.ConsolePopen is popen
