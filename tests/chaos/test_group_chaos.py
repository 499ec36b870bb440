"""Kill after kill, and a thousand clients that change their minds: all stays whole. Stand-in engine, real Ray."""

import asyncio
import os
import random
import signal

import pytest
from ray.util import remove_placement_group

from medusa_dist.config import Config
from medusa_dist.errors import OverloadedError
from medusa_dist.serve import supervisor as module
from medusa_dist.serve.group import TPWorkerGroup
from medusa_dist.serve.placement import reserve
from medusa_dist.serve.supervisor import Supervisor
from tests.support.fake_groups import STACK, Silent, collect, config, request, until
from tests.support.fake_stack import expected

pytestmark = pytest.mark.slow


class Real:
    """A supervisor over real processes; all pids it ever had."""

    def __init__(self, config: Config):
        self.config = config
        self.groups: list[TPWorkerGroup] = []

    async def __aenter__(self) -> "Real":
        self.placement = await asyncio.to_thread(reserve, self.config)
        self.supervisor = Supervisor(self.config, self.make, Silent())
        await self.supervisor.start()
        self.pids = set(self.groups[-1].pids)
        return self

    def make(self, generation: int) -> TPWorkerGroup:
        self.groups.append(TPWorkerGroup(self.config, self.placement, generation, STACK))
        return self.groups[-1]

    async def __aexit__(self, *exc):
        self.pids |= set(self.groups[-1].pids)
        await self.supervisor.stop()
        remove_placement_group(self.placement)
        for pid in self.pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_twenty_kills_of_random_ranks_lose_no_token_and_no_process(ray_cluster, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    dice = random.Random(0)
    prompts = [(10, 0, i) for i in range(4)]
    async with Real(config(world=2, max_running=8)) as run:
        seen: list[list[int]] = [[] for _ in prompts]
        readers = [
            asyncio.create_task(collect(run.supervisor, request(f"r{i}", prompt, 700), seen[i]))
            for i, prompt in enumerate(prompts)
        ]
        for kill in range(20):
            before = sum(map(len, seen))
            await until(lambda before=before: sum(map(len, seen)) > before + 8, 20)
            pids = run.groups[-1].pids
            run.pids |= set(pids)
            os.kill(dice.choice(pids), signal.SIGKILL)
            await until(lambda kill=kill: run.supervisor.generation == kill + 1, 20)
        for reader, prompt in zip(readers, prompts, strict=True):
            assert await asyncio.wait_for(reader, 60) == expected(prompt, 700)


async def test_thousand_random_cancels_leave_no_request_and_fail_no_group(ray_cluster):
    dice = random.Random(1)
    async with Real(config(world=1, max_running=32, max_queued=32)) as run:

        async def fickle(number: int) -> None:
            try:
                outputs = run.supervisor.outputs(request(f"f{number}", (1, 0, number), 50))
                count = 0
                async for output in outputs:
                    count += len(output.token_ids)
                    if count >= dice.randrange(60):
                        break
                await outputs.aclose()
            except OverloadedError:
                await asyncio.sleep(0.05)

        for start in range(0, 1000, 50):
            await asyncio.gather(*(fickle(number) for number in range(start, start + 50)))
        assert run.supervisor.num_requests == 0
        assert await collect(run.supervisor, request("last")) == expected((2, 0, 5), 40)
        assert run.supervisor.generation == 0
