"""`medusa-dist eval-heads`: accuracy of heads on the model's own answers, and speed-up.

Owns the measurements and the content of the report. Not here: recording (record_drafts.py), the arithmetic
(medusa/trees/replay.py), tables (eval_report.py), plots (plots.py).
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medusa_dist.engine.engine import Engine
from medusa_dist.errors import EngineError
from medusa_dist.heads_tools.record_drafts import engine_with_heads, record
from medusa_dist.llm import LLM
from medusa_dist.medusa.heads.heads_file import DESCRIPTION, read_description
from medusa_dist.medusa.trees.replay import (
    Bin,
    RecordedAnswer,
    accuracies,
    calibration_error,
    dynamic_curve,
    fit,
    reliability,
    static_curve,
)
from medusa_dist.outputs import SpeculationStats
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tools.progress import ProgressText
from medusa_dist.tools.prompts import prompt_ids, read_prompts

MAX_NODES = 63  # end of the curves; published trees have up to 63 nodes


@dataclass(frozen=True)
class Speed:
    """The same prompts through the engine, one at a time, with and without drafts."""

    prompts: int
    tokens_per_step: float
    tokens_per_s: float
    plain_tokens_per_s: float

    @property
    def speedup(self) -> float:
        """Speed with drafts over speed without."""
        return self.tokens_per_s / self.plain_tokens_per_s


@dataclass(frozen=True)
class Category:
    """One category of prompts. top_accuracies: [head][r], top-(r + 1) accuracy."""

    name: str
    answers: int
    places: int
    top_accuracies: list[list[float]]
    tokens_per_step: dict[int, float]  # replayed, by size of a dynamic tree
    speed: Speed | None


@dataclass(frozen=True)
class HeadsReport:
    """Everything needed to quote the numbers. dynamic, static: [n - 1] tokens per step with trees of n nodes."""

    model: str
    dtype: str
    heads: str
    temperature: float
    max_tokens: int
    prompts: str
    prompts_sha256: str
    whole: Category
    categories: list[Category]
    dynamic: list[float]
    static: list[float]
    confidence: list[Bin]
    calibrated: list[Bin]
    confidence_error: float
    calibrated_error: float


@dataclass(frozen=True)
class Asked:
    """What to evaluate on. num_timed: prompts per category that are also timed, 0 for none."""

    prompts: Path
    params: SamplingParams
    num_timed: int = 3


def eval_heads(llm: LLM, heads: str, asked: Asked, report: Callable[[str], None]) -> HeadsReport:
    """Evaluate the heads of an LLM. heads: their name, for display.

    Raises ConfigError for an LLM without heads or an invalid prompt file, EngineError if drafting changed a token.
    """
    engine = engine_with_heads(llm)
    prompts = [(prompt_ids(llm, prompt.text), prompt.category) for prompt in read_prompts(asked.prompts)]
    answers = record(engine, prompts, asked.params, report)
    report("replaying")
    calibration = fit(answers)
    confidence, calibrated = reliability(answers, None), reliability(answers, calibration)
    names = sorted({category for _, category in prompts} - {""})
    timed: dict[str, Speed | None] = {}
    for number, name in enumerate(names or [""]):
        report(ProgressText("timing", number, len(names) or 1, "categories", name))
        chosen = [ids for ids, category in prompts if category == name][: asked.num_timed]
        timed[name] = measure_speed(llm, engine, chosen, asked.params) if chosen else None
    speeds = [speed for speed in timed.values() if speed is not None]
    return HeadsReport(
        model=llm.config.model,
        dtype=llm.facts["dtype"],
        heads=heads,
        temperature=asked.params.temperature,
        max_tokens=asked.params.max_tokens or 0,
        prompts=asked.prompts.name,
        prompts_sha256=hashlib.sha256(asked.prompts.read_bytes()).hexdigest(),
        whole=_category("all", answers, joined(speeds) if speeds else None),
        categories=[_category(name, [a for a in answers if a.category == name], timed[name]) for name in names],
        dynamic=dynamic_curve(answers, MAX_NODES, calibration),
        static=static_curve(answers, MAX_NODES),
        confidence=confidence,
        calibrated=calibrated,
        confidence_error=calibration_error(confidence),
        calibrated_error=calibration_error(calibrated),
    )


def _category(name: str, answers: Sequence[RecordedAnswer], speed: Speed | None) -> Category:
    curve = dynamic_curve(answers, MAX_NODES, fit(answers))
    return Category(
        name=name,
        answers=len(answers),
        places=sum(len(answer.guesses) for answer in answers),
        top_accuracies=accuracies(answers),
        tokens_per_step={n: curve[n - 1] for n in (1, 3, 7, 15, 31, 63)},
        speed=speed,
    )


def measure_speed(llm: LLM, engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Speed:
    """Each prompt with and without drafts, alternating, so that other load on the machine affects both alike.

    Raises EngineError if the tokens differ.
    """
    seconds = {True: 0.0, False: 0.0}
    stats = SpeculationStats()
    num_tokens = 0
    for i, ids in enumerate(prompts):
        tokens = {}
        for speculation in (True, False) if i % 2 == 0 else (False, True):
            engine.scheduler.pool.reset_prefix_cache()  # the second run must not hit the first one's prompt
            begin = time.perf_counter()
            output = llm.generate([ids], replace(params, speculation=speculation, seed=i))[0]
            seconds[speculation] += time.perf_counter() - begin
            tokens[speculation] = output.token_ids
            if speculation:
                stats, num_tokens = stats + output.stats, num_tokens + len(output.token_ids)
        if tokens[True] != tokens[False]:
            raise EngineError(f"prompt {i}: speculation changed the tokens; this is a bug, please report it")
    return Speed(len(prompts), stats.tokens_per_step, num_tokens / seconds[True], num_tokens / seconds[False])


def joined(speeds: Sequence[Speed]) -> Speed:
    """Means over categories with equal weights: harmonic for rates, as for prompts of equal length."""
    count = len(speeds)
    return Speed(
        sum(speed.prompts for speed in speeds),
        count / sum(1 / speed.tokens_per_step for speed in speeds),
        count / sum(1 / speed.tokens_per_s for speed in speeds),
        count / sum(1 / speed.plain_tokens_per_s for speed in speeds),
    )


def as_json(report: HeadsReport) -> str:
    """The report as JSON."""
    return json.dumps(asdict(report), indent=2)


def write_accuracies(folder: Path, report: HeadsReport) -> None:
    """Write the measured accuracies, rounded to three digits, and their origin into a head file's description.

    Raises HeadsError if there is no description.
    """
    about = read_description(folder)
    measured = tuple(tuple(round(x, 3) for x in ranks) for ranks in report.whole.top_accuracies)
    origin = {
        "places": report.whole.places,
        "prompts": report.prompts,
        "prompts_sha256": report.prompts_sha256,
        "max_tokens": report.max_tokens,
        "temperature": report.temperature,
        "dtype": report.dtype,
    }
    updated = about.model_copy(update={"top_accuracies": measured, "training": about.training | {"measured": origin}})
    (folder / DESCRIPTION).write_text(updated.model_dump_json(indent=2) + "\n")
