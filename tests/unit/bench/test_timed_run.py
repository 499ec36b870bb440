"""When the clock of a run stops, and what is counted until then."""

import pytest

from medusa_dist.bench.timed_run import run_prompts
from medusa_dist.outputs import FinishReason, Output, SpeculationStats
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams


class Engine:
    """Each sequence ends after as many steps as its prompt has tokens; drafts make every step emit two tokens."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.seeds: list[int] = []
        self.most = 0
        self.num_steps = 0
        self.forgotten = 0
        self.drafts: set[bool] = set()

    def reset_prefix_cache(self) -> None:
        self.forgotten += 1

    def stats(self):
        return type("Stats", (), {"phase_seconds": {"forward": float(self.num_steps)}})

    def submit(self, request: Request) -> None:
        self.left[request.request_id] = len(request.prompt_ids)
        self.seeds.append(request.seed)
        self.drafts.add(request.params.speculation)

    def step(self) -> list[Output]:
        self.num_steps += 1
        self.most = max(self.most, len(self.left))
        outputs = []
        for name in list(self.left):
            self.left[name] -= 1
            ended = self.left[name] == 0
            if ended:
                del self.left[name]
            reason = FinishReason.LENGTH if ended else None
            stats = SpeculationStats(1, 0, ())
            outputs.append(Output(request_id=name, token_ids=(7, 8), finish_reason=reason, stats=stats))
        return outputs


@pytest.mark.parametrize("drafts", [True, False])
def test_the_clock_stops_when_the_batch_is_no_longer_full(drafts: bool) -> None:
    engine = Engine()
    run = run_prompts(engine, [[1] * 2, [1] * 4, [1] * 3, [1] * 9], 2, SamplingParams(), drafts)
    # 0 and 1 run; 2 follows 0 after two steps, 3 follows 1 after four; 2 ends after five: 3 is alone from there.
    assert engine.num_steps == 13 and run.num_steps == 5 and run.phases == {"forward": 5.0}
    assert run.num_choices == 10 and run.num_tokens == 20
    assert [len(tokens) for tokens in run.tokens] == [4, 8, 6, 18]
    assert 0 < run.seconds <= run.total_s
    assert run.rate == run.num_tokens / run.seconds and run.total_rate == 36 / run.total_s
    assert engine.most == 2 and engine.seeds == [0, 1, 2, 3] and engine.forgotten == 1 and engine.drafts == {drafts}
