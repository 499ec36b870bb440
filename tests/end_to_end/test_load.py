"""Load comes and goes: speculation turns itself off and on again, without a stall, and off costs nothing.

Time is counted, not measured: a step costs what the engine's own curve says of its rows, drafting what it says of the
sequences. The model is a table, everything else is real.
"""

import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from types import FrameType

import pytest

from medusa_dist.config import HEADS, SpeculationConfig
from medusa_dist.engine import engine as engine_module
from medusa_dist.engine.engine import Engine
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.ops.attention import backend
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.markov_model import MarkovHeads, markov_engine, random_table

pytestmark = pytest.mark.usefixtures("one_thread")
LOGITS = random_table(13, 2.0)
# Up to 6 rows cost little more than 4; from 8 on, a row costs more than a sure draft brings.
COST = StepCost((4, 6, 8, 12, 64), (1.0, 1.1, 1.4, 2.2, 14.0), draft_s=0.03, draft_s_each=0.002)
MOST, MANY, EACH = 12, 9, 20  # sequences at the height of the load; where nothing pays; steps between joins or leaves
FEW = 5  # sequences for which drafts clearly pay


class Timer:
    """A clock that stands still but for what the engine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass(frozen=True)
class Step:
    """What one step did."""

    seconds: float
    batch: int
    num_tokens: int
    num_drafted: int
    heads_ran: bool


def request(name: str) -> Request:
    params = SamplingParams(max_tokens=None, temperature=0.0 if int(name) % 2 else 0.9)
    return Request(request_id=name, prompt_ids=(int(name) % 13,), params=params, seed=int(name))


class Town:
    """An engine on a counted clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, with_heads: bool = True) -> None:
        self.heads = MarkovHeads(LOGITS, 3, 0.5)
        config = SpeculationConfig(mode="auto", max_nodes=7)
        self.engine = markov_engine(
            LOGITS, config, heads=self.heads if with_heads else None, cost=COST, max_running=MOST, max_model_len=8192
        )
        self.timer = Timer()
        monkeypatch.setattr(engine_module, "time", self.timer)
        verify = self.engine.ranks.verify

        def timed_verify(plan, *clock):
            self.timer.now += COST(plan.token_ids.size)
            return verify(plan, *clock)

        self.engine.ranks.verify = timed_verify
        if HEADS in self.engine.drafters:
            draft = self.engine.drafters[HEADS].draft

            def timed_draft(verdicts, scores):
                self.timer.now += COST.drafting(len(verdicts))
                return draft(verdicts, scores)

            self.engine.drafters[HEADS].draft = timed_draft
        self.tokens: dict[str, list[int]] = {}

    def step(self) -> Step:
        began, calls = self.timer.now, self.heads.num_calls
        outputs = self.engine.step()
        for output in outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
        return Step(
            self.timer.now - began,
            len(outputs),
            sum(len(output.token_ids) for output in outputs),
            sum(output.stats.num_drafted for output in outputs),
            self.heads.num_calls > calls,
        )

    def steps(self, count: int) -> list[Step]:
        return [self.step() for _ in range(count)]


def rush_hour(town: Town, each: int = EACH) -> list[Step]:
    """One more sequence every so many steps until MOST run, and one less after every so many steps."""
    seen = []
    for i in range(MOST):
        town.engine.submit(request(str(i)))
        seen += town.steps(each)
    for i in range(MOST - 1):
        town.engine.abort(str(i))
        seen += town.steps(each)
    return seen


def rate(steps: list[Step]) -> float:
    """Tokens per second, against what the curve says of the same batches without heads."""
    return sum(COST(step.batch) * step.num_tokens / step.batch for step in steps) / sum(step.seconds for step in steps)


def test_rising_and_falling_load_switches_drafts_without_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    seen = rush_hour(town)
    # It drafts for a few and not for many, on the way up and on the way down.
    for half in (seen[: len(seen) // 2], seen[len(seen) // 2 :]):
        few = [step for step in half if step.batch <= 2]
        many = [step for step in half if step.batch >= MANY]
        assert sum(step.num_drafted for step in few) > 2 * len(few)
        assert sum(step.heads_ran for step in few) > 0.9 * len(few)
        assert sum(step.num_drafted for step in many) == 0
    # What it costs to find that out: rare probes. What drafts are worth was seen with few sequences, on the way up.
    up, down = seen[: MOST * EACH], seen[MOST * EACH :]
    heavy = [[step for step in half if step.batch > FEW] for half in (up, down)]
    assert rate(heavy[0]) > 0.999 and rate(heavy[1]) > 0.999
    for half in heavy:
        assert sum(step.heads_ran for step in half) <= 3
    # No step stands out among its neighbours.
    for at in range(5, len(seen) - 5):
        around = statistics.median(step.seconds for step in (*seen[at - 5 : at], *seen[at + 1 : at + 6]))
        assert seen[at].seconds < 2 * around, f"step {at} of {len(seen)}: {seen[at]}"


def test_speculation_costs_nothing_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each load: two rounds of probes are in what is counted."""
    town = Town(monkeypatch)
    rates = {}
    for batch in (1, 2, 4, FEW + 1, MANY, MOST):
        for i in range(len(town.tokens), batch):
            town.engine.submit(request(str(i)))
        town.steps(20)
        steps = town.steps(256)
        rates[batch] = rate(steps)
        if batch >= MANY:
            untouched = [step for step in steps if not step.heads_ran]
            assert rate(untouched) == pytest.approx(1.0, abs=1e-9) and len(untouched) >= 254
        if batch > FEW:
            assert 1 <= sum(step.heads_ran for step in steps) <= 0.01 * len(steps)
    assert min(rates.values()) > 0.999 and rates[1] > 1.3


def test_load_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    town, plain = Town(monkeypatch), Town(monkeypatch, with_heads=False)
    monkeypatch.setattr(engine_module, "time", town.timer)
    rush_hour(town, 6)
    rush_hour(plain, 6)
    for name, tokens in town.tokens.items():
        both = min(len(tokens), len(plain.tokens[name]))
        assert both > 0 and tokens[:both] == plain.tokens[name][:both]


def calls(engine: Engine) -> Counter[str]:
    """Functions of the algorithm and of the drafter that a step enters."""
    seen: Counter[str] = Counter()

    def look(frame: FrameType, event: str, _argument: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and (
            module.startswith("medusa_dist.medusa.") or module == "medusa_dist.engine.drafters.head_drafter"
        ):
            seen[f"{module.removeprefix('medusa_dist.')}.{frame.f_code.co_name}"] += 1

    sys.setprofile(look)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    return seen


def test_step_without_drafts_calls_what_an_engine_without_heads_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step without drafts does what a step of an engine without heads does, function by function."""
    towns = [Town(monkeypatch), Town(monkeypatch, with_heads=False)]
    monkeypatch.setattr(engine_module, "time", towns[0].timer)
    masks: list[int] = []
    real = backend.Ancestry.__init__
    monkeypatch.setattr(
        backend.Ancestry, "__init__", lambda self, parents: masks.append(parents.size) or real(self, parents)
    )
    for town in towns:
        for i in range(MOST):
            town.engine.submit(request(str(i)))
        town.steps(40)  # the heads are tried at this size, and found not to pay
    assert towns[0].heads.num_calls > 0
    masks.clear()
    quiet, bare = (calls(town.engine) for town in towns)
    assert quiet == bare
    assert not any(name.split(".")[-2] in ("medusa_heads", "draft", "head_drafter", "calibration") for name in quiet)
    assert not {"medusa.trees.tree.best_tree", "medusa.trees.budget.best_budget"} & set(quiet)
    assert set(masks) <= {0}
    ran = [town.heads.num_calls for town in towns]
    towns[0].steps(300)
    assert 1 <= towns[0].heads.num_calls - ran[0] <= 3  # probes: less than one step in a hundred


def test_recorded_calls_include_speculation_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(monkeypatch)
    town.engine.submit(request("1"))
    town.steps(5)
    seen = calls(town.engine)
    assert {"medusa.trees.draft.guess", "medusa.trees.tree.best_tree", "medusa.trees.budget.best_budget"} <= set(seen)
