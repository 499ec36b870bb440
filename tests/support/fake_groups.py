"""A supervisor over the stand-in engine: its config, its requests, and waiting for it."""

import asyncio
import time

from medusa_dist.config import Config
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

STACK = "tests.support.fake_stack"


class Silent:
    """Stands in for the metrics."""

    def __init__(self):
        self.failures = []
        self.ends = []

    def on_output(self, pending, output, now):
        pass

    def on_batch(self, batch, num_requests):
        pass

    def on_failure(self, error):
        self.failures.append(str(error))

    def on_start(self, seconds):
        pass

    def on_end(self, pending):
        self.ends.append(pending.outcome)


def config(world=1, **changes) -> Config:
    timeouts = {"step_s": 2.0, "heartbeat_s": 0.3, "placement_s": 60.0, "load_s": 60.0, **changes.pop("timeouts", {})}
    return Config.model_validate(
        {
            "model": "fake:ok",
            "device": "cpu",
            "tensor_parallel_size": world,
            "resources": {"cpus_per_rank": 0.5, "threads_per_rank": 1},
            "timeouts": timeouts,
            "max_running": 2,
            "max_queued": 2,
            **changes,
        }
    )


def request(name: str, prompt=(2, 0, 5), max_tokens=40) -> Request:
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=max_tokens), seed=0)


async def collect(supervisor, request, seen=None):
    ids = [] if seen is None else seen
    async for output in supervisor.outputs(request):
        ids += output.token_ids
    return ids


async def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
