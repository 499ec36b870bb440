"""`medusa-dist serve`: deploys a Serve config in the foreground and stops it again.

Owns the Ray cluster it starts (or joins), deployment, progress and shutdown. Not here: validating the file
(config_file.py), what a replica does (replica.py). Unlike `serve run`, the command exits with the reason if a service
fails to start.
"""

import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus
from ray.util import placement_group_table

from medusa_dist.config import Config
from medusa_dist.errors import ConfigError, GroupError
from medusa_dist.serve.config_file import ServeFile
from medusa_dist.serve.http.proxy import request_hook
from medusa_dist.serve.placement import bundles, explain_room, resolve_device
from medusa_dist.serve.ray_cluster import (
    ClusterAddress,
    free_metrics_port,
    join_cluster,
    run_while_ray_lives,
    start_local_ray,
)

Say = Callable[[str], None]
POLL_S = 0.5
STOP_POLL_S = 0.1
PERMANENT = re.compile(r"medusa_dist\.errors\.(Config|Model|Heads)Error: ")  # a retry would fail the same way
ROOM_S = 5.0  # explain a placement that takes longer


class Launch:
    """One run of a Serve config. address: of a Ray cluster to join; None starts one on this machine and stops it.

    say: called with the current phase of the start. metrics_port: of the Ray that is started; see free_metrics_port.
    After the start, dashboard and metrics are the addresses of both; metrics is empty if Ray was not started here.
    """

    def __init__(
        self, file: ServeFile, address: ClusterAddress | None, say: Say, metrics_port: int | None = None
    ) -> None:
        self._file = file
        self._address = address
        self._say = say
        self._metrics_port = metrics_port
        self._ending = Path(tempfile.mkdtemp(prefix="medusa-dist-")) / "ending"
        self.dashboard = self.metrics = ""

    def start(self) -> float:
        """Deploy and wait until every application responds; returns the seconds it took. Raises MedusaError."""
        began = time.monotonic()
        options = self._file.schema.http_options
        if self._address is None:
            _check_port(options.host, options.port)
        self._say("starting Ray")
        self._start_ray()
        for config in self._file.configs.values():
            self._check_room(resolve_device(config))
        self._say("starting Serve")
        serve.start(proxy_location=self._file.schema.proxy_location, http_options=HTTPOptions(**options.model_dump()))
        _get_global_client().deploy_apps(self._file.schema, _blocking=False)
        for name, config in self._file.configs.items():
            self._await(name, config)
        return time.monotonic() - began

    def _start_ray(self) -> None:
        if self._address is None:
            port = free_metrics_port(self._metrics_port, {self._file.schema.http_options.port})
            request_hook(self._ending)
            context = start_local_ray(dashboard=True, metrics_port=port)
            self.metrics = f"127.0.0.1:{port}"
        else:
            context = join_cluster(self._address)
        self.dashboard = context.dashboard_url

    def stop(self) -> None:
        """Stop everything that was started. Open streams may finish within graceful_shutdown_timeout_s.

        New calls get 503 meanwhile, or 404 on a cluster that was joined.
        """
        self._ending.touch()
        if ray.is_initialized():
            run_while_ray_lives(self._stop_serve)
            ray.shutdown()
        shutil.rmtree(self._ending.parent, ignore_errors=True)

    def _stop_serve(self) -> None:
        """Delete the applications, which lets open streams finish.

        Not serve.shutdown: it ends the proxies at once, and with them open streams. The rest of Serve ends with Ray.
        """
        names = list(self._file.configs)
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is None:
            return  # not started yet
        client.delete_apps(names, blocking=False)
        while not set(names).isdisjoint(serve.status().applications):
            time.sleep(STOP_POLL_S)

    def _check_room(self, config: Config) -> None:
        """Raise ConfigError at once for a replica that no node of the cluster could ever hold."""
        wanted = bundles(config, front=True)
        for key in ("CPU", "GPU"):
            amount = sum(bundle.get(key, 0.0) for bundle in wanted)
            if self._address is None and amount > ray.cluster_resources().get(key, 0.0):
                raise ConfigError(
                    f"not enough resources for {config.name}: {explain_room(wanted)}; lower resources.cpus_per_rank "
                    "and resources.front_cpus (reservations, which may be fractions) or tensor_parallel_size"
                )

    def _await(self, name: str, config: Config) -> None:
        """Wait until an application responds to /health with 200."""
        timeouts = config.timeouts
        began = time.monotonic()
        placed = False
        while True:
            waited_s = time.monotonic() - began
            status = serve.status().applications.get(name)
            if status is not None:
                details = [status.message, *(d.message for d in status.deployments.values())]
                if status.status == ApplicationStatus.DEPLOY_FAILED or any(map(PERMANENT.search, details)):
                    raise GroupError(f"{name}: {reason(max(details, key=len))}")
            if status is not None and status.status == ApplicationStatus.RUNNING and _answers(self._file.url(name)):
                return
            phases = rank_phases(config.name)
            placed = placed or bool(phases) or _is_placed(name)
            room = explain_room(bundles(resolve_device(config), front=True)) if not placed and waited_s > ROOM_S else ""
            self._say(f"{name}: {phases or ('start' if placed else 'schedule')} {room}".rstrip())
            if not placed and waited_s > timeouts.placement_s:
                raise GroupError(
                    f"{name} could not be placed within {timeouts.placement_s:g} s (timeouts.placement_s); {room}"
                )
            if waited_s > timeouts.placement_s + timeouts.load_s + timeouts.step_s:
                raise GroupError(f"{name} does not respond after {waited_s:.0f} s; last phase: {phases or 'schedule'}")
            time.sleep(POLL_S)


def rank_phases(model: str) -> str:
    """The phases of a model's ranks, or "" if none is placed: "load", or "rank 0 warm up, rank 1 load"."""
    names = sorted(name for name in ray.util.list_named_actors() if name.startswith(f"medusa:{model}:rank"))
    phases: dict[str, str] = {}
    for name in names:
        try:
            phases[name.split(":")[-2]] = ray.get(ray.get_actor(name).phase.remote(), timeout=1.0)
        except (RayError, ValueError):
            continue  # not up yet, or already gone
    if len(set(phases.values())) == 1:
        return next(iter(phases.values()))
    return ", ".join(f"{rank.replace('rank', 'rank ')} {phase}" for rank, phase in phases.items())


def _is_placed(application: str) -> bool:
    """Whether Ray has placed a replica; Serve gives a replica's placement group the replica's name."""
    groups = placement_group_table().values()
    return any(g["state"] == "CREATED" and g["name"].startswith(f"SERVE_REPLICA::{application}#") for g in groups)


def reason(message: str) -> str:
    """The project's own error in Serve's message, which wraps it in tracebacks; otherwise the message."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message)
    ours = re.findall(r"^\s*medusa_dist\.errors\.\w+: (.+(?:\n(?!\s*File|\s*ray::|\s*$).+)*)", text, re.MULTILINE)
    return ours[-1].strip() if ours else text.strip()


def sampling_note(url: str, api_key: str | None) -> str:
    """A line about the model's own values of sampling fields; "" if it has none, or the service does not say."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        (card,) = httpx.get(f"{url}/v1/models", headers=headers, timeout=5.0).json()["data"]
        values = card["default_sampling_params"]
    except (httpx.HTTPError, ValueError, KeyError):
        return ""
    listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return f"Requests that leave them out use the model's generation_config.json: {listed}" if listed else ""


def wait_for_signal() -> str:
    """Block until SIGINT, SIGTERM or SIGHUP and return its name. A second signal has its former effect."""
    received: list[int] = []
    event = threading.Event()

    def note(number: int, frame: Any) -> None:
        received.append(number)
        event.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    while not event.wait(1.0):
        pass
    for number, handler in before.items():
        signal.signal(number, handler)
    return signal.Signals(received[0]).name


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise ConfigError(f"http_options.port: cannot listen on {host}:{port}: {error.strerror}") from None


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False
