"""Target of a batch job: a URL, an application on a Ray cluster, or one started for the job.

Owns this choice, and stopping what it started. Not here: sending (over_http.py, over_serve.py), the course of a job
(job.py).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from medusa_dist.batch.over_http import HttpSender
from medusa_dist.batch.over_serve import ServeSender, refuse_if_serving
from medusa_dist.batch.passes import Sender
from medusa_dist.errors import ConfigError
from medusa_dist.serve.config_file import read_serve_file
from medusa_dist.serve.launch import Launch
from medusa_dist.serve.ray_cluster import ClusterAddress, cluster_address, join_cluster

Say = Callable[[str], None]
OTHER_TARGETS = "A job can also start a model (--config), or use a service at a URL (--address http://...)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The user's options. config: a Serve config to start. address: a URL or a Ray cluster; None: RAY_ADDRESS.

    app: one of several applications. concurrency: lines in flight; None: the default. deployment: its name.
    """

    deployment: str
    config: Path | None = None
    address: str | None = None
    app: str | None = None
    concurrency: int | None = None


@contextmanager
def open_sender(target: Target, say: Say, note: Say) -> Iterator[Callable[[], Sender]]:
    """Yield a function that connects, and starts a model if needed; leaving the block stops it again.

    say: called with the current phase of a start. note: called with notices for the user while lines are processed.
    Contradictory options raise ConfigError at once; all other errors are raised when the function is called.
    """
    is_url = (target.address or "").startswith(("http://", "https://"))
    if is_url and target.config is not None:
        raise ConfigError("--config starts a model on Ray, and --address names a running service; remove one of them")
    if is_url and target.app is not None:
        raise ConfigError(
            "--app names an application on a Ray cluster, but --address is the URL of one application; remove --app"
        )
    cluster = None if is_url else cluster_address(target.address)
    with ExitStack() as ends:

        def connect() -> Sender:
            if is_url:
                assert target.address is not None
                return HttpSender(target.address, target.concurrency)
            app = target.app
            if target.config is not None:
                app = _start(target.config, target, cluster, say, ends)
            elif not ray.is_initialized():
                try:
                    join_cluster(cluster or ClusterAddress("auto", "--address"))
                except ConfigError as error:
                    raise ConfigError(f"{error} {OTHER_TARGETS}") from None
                ends.callback(ray.shutdown)
            return ServeSender(app, target.deployment, target.concurrency, note)

        yield connect


def _start(path: Path, target: Target, cluster: ClusterAddress | None, say: Say, ends: ExitStack) -> str:
    """Deploy a config for this job; returns the application's name."""
    file = read_serve_file(path, target.deployment)
    names = sorted(file.configs)
    name = target.app or names[0]
    if name not in names or (target.app is None and len(names) > 1):
        raise ConfigError(f"{path} has the applications {', '.join(names)}; choose one with --app")
    if cluster is not None:
        refuse_if_serving(cluster)
    launch = Launch(file, cluster, say)
    ends.callback(launch.stop)
    launch.start()
    return name
