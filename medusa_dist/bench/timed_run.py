"""A timed run: decodes a list of prompts with the engine of this process.

Owns what is counted and when the clock runs. Not here: pairs, intervals (bench.py), the report (report.py).
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from medusa_dist.engine.engine import Engine
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams


@dataclass
class TimedRun:
    """The tokens of every prompt, and counts while the batch was full."""

    tokens: list[tuple[int, ...]]
    seconds: float = 0.0
    num_tokens: int = 0
    num_choices: int = 0  # sequence-steps, so num_tokens / num_choices is tokens per step
    num_steps: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    total_s: float = 0.0  # until the last token

    @property
    def rate(self) -> float:
        """Tokens per second while the batch was full."""
        return self.num_tokens / self.seconds

    @property
    def total_rate(self) -> float:
        """Tokens per second from the first prompt to the last token."""
        return sum(len(tokens) for tokens in self.tokens) / self.total_s


def run_prompts(
    engine: Engine, prompts: Sequence[Sequence[int]], batch: int, params: SamplingParams, speculation: bool
) -> TimedRun:
    """Decode all prompts, `batch` at a time: when one finishes, the next starts. Prompt i has seed i.

    Counting stops when the last prompt has started and one more finishes: a draining batch is not representative.
    """
    engine.reset_prefix_cache()  # otherwise the second run of a pair would reuse the prompts of the first
    params = replace(params, speculation=speculation)
    queue = deque(
        Request(request_id=str(i), prompt_ids=tuple(prompt), params=params, seed=i) for i, prompt in enumerate(prompts)
    )
    run = TimedRun([()] * len(prompts))
    num_running, is_full = 0, True
    before, begin = engine.stats().phase_seconds, time.perf_counter()
    while queue or num_running:
        while queue and num_running < batch:
            engine.submit(queue.popleft())
            num_running += 1
        outputs = engine.step()
        num_running -= _keep(run, outputs, is_full)
        if is_full and not queue and num_running < batch:
            is_full = False
            run.seconds = time.perf_counter() - begin
            run.phases = {k: v - before.get(k, 0.0) for k, v in engine.stats().phase_seconds.items()}
    run.total_s = time.perf_counter() - begin
    return run


def _keep(run: TimedRun, outputs: Sequence[Output], is_full: bool) -> int:
    """Count one step; returns the number of requests that finished."""
    for output in outputs:
        run.tokens[int(output.request_id)] += output.token_ids
    if is_full:
        run.num_steps += 1
        run.num_choices += sum(output.stats.num_steps for output in outputs)
        run.num_tokens += sum(len(output.token_ids) for output in outputs)
    return sum(output.finish_reason is not None for output in outputs)
