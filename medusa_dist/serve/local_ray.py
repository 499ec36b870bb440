"""Starts Ray on this machine, for a command or program without a running cluster.

Owns the options of such a cluster: loopback only, quiet, normal priority. Not here: joining a cluster (launch.py).
"""

import logging
import os
from typing import Any

import ray


def start_local_ray(num_cpus: int | None = None, dashboard: bool = False) -> Any:
    """Start Ray for this process and its children; `ray.shutdown` stops it. Returns Ray's context.

    num_cpus: the CPUs that Ray may assign; None: this machine's cores.
    """
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)  # callers report progress and errors themselves
    os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's default of 15, ranks starve next to other work
    return ray.init(
        address="local",
        namespace="serve",
        num_cpus=num_cpus,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
