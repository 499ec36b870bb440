"""Ray clusters: starts one on this machine, or joins one that runs.

Owns the options of a cluster that is started here (loopback only, quiet, normal priority, a session of its own), and
what is said of an address where no cluster is. Not here: what runs on it (launch.py, local_group.py).
"""

import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants, services
from ray.exceptions import RayError

from medusa_dist.errors import ConfigError

ADDRESS_VARIABLE = "RAY_ADDRESS"  # Ray sets it in a submitted job
LOOPBACK_VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
LOOPBACK = ("127.0.0.1", "localhost", "::1")
METRICS_PORT = 8080  # as in cluster/start_head.sh
CONNECT_S = 5.0  # for each of: a connection, and a gRPC server behind it


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """text: host:port, auto, or ray://host:port. origin: what the user set, for messages."""

    text: str
    origin: str

    def __str__(self) -> str:
        return f"{self.origin} {self.text!r}"


def cluster_address(option: str | None) -> ClusterAddress | None:
    """The cluster that the user names by --address or RAY_ADDRESS; None: none, or a new one ("local")."""
    variable = os.environ.get(ADDRESS_VARIABLE)
    # Ray itself reads the variable where the address is auto.
    given = ClusterAddress(option, "--address") if option and not (option == "auto" and variable) else None
    if given is None and variable:
        given = ClusterAddress(variable, ADDRESS_VARIABLE)
    return None if given is None or given.text == "local" else given


def start_local_ray(num_cpus: int | None = None, dashboard: bool = False, metrics_port: int | None = None) -> Any:
    """Start Ray for this process and its children; `ray.shutdown` stops it. Returns Ray's context.

    num_cpus: the CPUs that Ray may assign; None: this machine's cores. metrics_port: None: any free port.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's default of 15, ranks starve next to other work
    # Submitted jobs run in the environment of Ray's processes: they find the programs beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with _environment("PATH", path), _loopback(), _own_session():
        return _init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _metrics_export_port=metrics_port,
        )


def run_while_ray_lives(work: Callable[[], None]) -> bool:
    """Run work in a thread; True when it is done, False as soon as a Ray that was started here has lost a process.

    Calls to a Ray that was killed wait for half a minute or longer.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    node = ray._private.worker._global_node
    while thread.is_alive():
        thread.join(0.1)
        if thread.is_alive() and node is not None and node.dead_processes():
            return False
    if failed:
        raise failed[0]
    return True


def join_cluster(address: ClusterAddress) -> Any:
    """Connect to a running cluster. Returns Ray's context.

    Raises ConfigError, within seconds, if there is none at the address, or it requires a token that is not set.
    """
    host, port = _host_and_port(address)
    on_loopback = _check(address, host, port)
    with _loopback() if on_loopback else _nothing():
        try:
            return _init(address=address.text)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise _missing(address, str(error).strip().splitlines()[0]) from None


def _init(**options: Any) -> Any:
    """ray.init without messages: callers report progress and errors themselves. Keeps the caller's SIGTERM handler."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = signal.getsignal(signal.SIGTERM)
    context = ray.init(namespace="serve", log_to_driver=False, logging_level=logging.ERROR, **options)
    if handler is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    return context


# A cluster that is started here


@contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    """Processes that are started meanwhile see this value."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(variable)
        else:
            os.environ[variable] = before


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray that is started or joined meanwhile uses the loopback address instead of this machine's.

    All its ports are then out of reach for others, which no option of ray.init does; on Windows and macOS it is Ray's
    default.
    """
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    with _environment(LOOPBACK_VARIABLE, "0"):  # for Ray's processes
        ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = is_cluster


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _own_session() -> Iterator[None]:
    """Ray's processes that are started meanwhile get a session of their own.

    A signal to this process's group, from a terminal or a container's init, would otherwise end them before this
    process could let open streams finish. They still die with this process, by Ray's own means.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def free_metrics_port(wanted: int | None, avoid: set[int]) -> int:
    """The wanted port; None: METRICS_PORT, or any free one if it is taken. Raises ConfigError for a wanted one.

    avoid: ports that are free now, but will be used.
    """
    port = METRICS_PORT if wanted is None else wanted
    reason = "it is the service's own port" if port in avoid else _in_use(port)
    if reason is None:
        return port
    if wanted is not None:
        raise ConfigError(f"--metrics-port: cannot listen on 127.0.0.1:{port}: {reason}")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _in_use(port: int) -> str | None:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return None
    except OSError as error:
        return error.strerror


# A cluster that is joined


def _host_and_port(address: ClusterAddress) -> tuple[str, int]:
    """What to connect to. Raises ConfigError if the address is none, or "auto" finds nothing."""
    text: str | None = address.text
    if text == "auto":
        try:
            text = services.get_ray_address_from_environment("auto", None)
        except ConnectionError:
            text = None
        if text is None:
            raise _missing(address, "no Ray is running on this machine")
    host, colon, port = str(text).removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address}: an address of a Ray cluster is HOST:PORT, auto, or ray://HOST:PORT")
    return host.strip("[]"), int(port)


def _check(address: ClusterAddress, host: str, port: int) -> bool:
    """Raise ConfigError if no gRPC server responds; Ray itself would try for minutes.

    Returns whether it responds at the loopback address alone.
    """
    error: OSError | None = None
    hosts = [ray.util.get_node_ip_address(), host] if host in LOOPBACK else [host]
    for one in hosts:
        try:
            socket.create_connection((one, port), CONNECT_S).close()
        except OSError as failed:
            error = failed
            continue
        if os.environ.get("RAY_USE_TLS", "0") in ("0", "") and not _speaks_grpc(one, port):
            raise _missing(address, "what listens there is not Ray")
        return one in LOOPBACK
    reason = "no response" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
    raise _missing(address, reason)


def _speaks_grpc(host: str, port: int) -> bool:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _missing(address: ClusterAddress, reason: str) -> ConfigError:
    other = f"unset {ADDRESS_VARIABLE}" if address.origin == ADDRESS_VARIABLE else "leave it out"
    return ConfigError(
        f"{address}: no Ray cluster responds at this address: {reason}\n"
        f"Start the cluster, give the address of another, or {other} to use a Ray on this machine. A cluster with "
        "token authentication also requires RAY_AUTH_MODE=token in this shell."
    )
