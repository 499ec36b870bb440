"""Ray on this machine, for a command or a program that found none running.

Owns how such a cluster is started: on loopback, quiet, at normal priority. Not here: joining a cluster.
"""

import logging
import os
from typing import Any

import ray


def start_local_ray(num_cpus: int | None = None, dashboard: bool = False) -> Any:
    """Start Ray for this process and those it starts; `ray.shutdown` ends it. Returns Ray's context.

    num_cpus: what it may hand out; None: this machine's cores.
    """
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)  # whoever calls this tells progress and errors in its own words
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves the ranks beside any other work
    return ray.init(
        address="local",
        namespace="serve",
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
