"""One Ray for the whole run, started when the first test asks for it. Without a GPU, Triton's kernels are interpreted.

The environment is set before ray or triton is imported anywhere: they read it at import.
"""

import os
import tempfile
from pathlib import Path

os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="medusa-dist-tests-")  # where files of /v1/files are by default
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

if not list(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    from medusa_dist.serve.http.proxy import request_hook

    request_hook()
    ray.init(num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False, namespace="serve")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def one_thread():
    """Tiny products on one thread: waiting for a second one costs more than it brings where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
