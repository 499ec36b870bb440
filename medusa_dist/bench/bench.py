"""`medusa-dist bench`: measures the speed-up of speculation on this machine.

Owns the comparison. Not here: a single run (timed_run.py), other engines (peers.py), the report (report.py).
One engine in one process decodes the same prompts with and without drafts, alternating, so that load on the machine
affects both alike. A pair with different tokens is an error, because the output must be exact. The baseline is our own
engine, with single rows padded as in other steps. Ratios are per pair; the interval is a bootstrap over pairs.
"""

import hashlib
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch

from medusa_dist.bench.local_peers import Answers
from medusa_dist.bench.machine import machine, read_bandwidth
from medusa_dist.bench.peers import Peer
from medusa_dist.bench.report import PEER_TIMED, TIMED, BenchReport, PeerRow, Row, Side
from medusa_dist.bench.timed_run import TimedRun, run_prompts
from medusa_dist.errors import EngineError
from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.chat_template import encode_question
from medusa_dist.tools.progress import ProgressText
from medusa_dist.tools.prompts import read_prompts

PROMPTS = Path(__file__).parents[1] / "data" / "bench_prompts.txt"
_BOOTSTRAP_ROUNDS = 2000
_ORDERS: tuple[tuple[str | bool, ...], ...] = tuple(permutations(("theirs", True, False)))


@dataclass(frozen=True)
class Setting:
    """What to measure. pairs: per batch size and temperature. waves: prompts per run / batch, for batches above 1.

    prompts: file with one prompt per line, or .jsonl. If a run needs more, they are repeated with a number in front, so
    that no two prompts of a run share a prefix (beyond the chat template).
    """

    batches: Sequence[int]
    temperatures: Sequence[float]
    pairs: int
    waves: int
    max_tokens: int
    prompts: Path
    exact_phases: bool = False  # on a GPU: synchronise after each phase (engine/runner/phase_timer.py)

    def params(self, temperature: float) -> SamplingParams:
        """All answers have max_tokens tokens, so that both sides do the same work."""
        return SamplingParams(max_tokens=self.max_tokens, temperature=temperature, ignore_eos=True)


class PromptSource:
    """An endless source of prompts from a file, as token ids."""

    def __init__(self, llm: LLM, path: Path) -> None:
        self._llm = llm
        self._texts = [question.text for question in read_prompts(path)]

    def take(self, start: int, count: int) -> list[list[int]]:
        """Prompts start, start + 1, ... of the file; repeated ones are numbered."""
        return [self._ids(start + i, i // len(self._texts)) for i in range(count)]

    def _ids(self, index: int, repeat: int) -> list[int]:
        text = self._texts[index % len(self._texts)]
        text = f"{repeat + 1}. {text}" if repeat else text
        return encode_question(self._llm.tokenizer, text)


def bench(llm: LLM, setting: Setting, peers: Sequence[Peer], report: Callable[[str], None]) -> BenchReport:
    """Measure all batch sizes and temperatures, then the peers. report: called with the current activity.

    Raises EngineError if the tokens of a pair differ, ConfigError for an invalid prompt file.
    """
    source = PromptSource(llm, setting.prompts)
    device = torch.device(llm.facts["device"])
    if setting.exact_phases:
        llm.engine.clock.wait_for(device)
    bandwidth = read_bandwidth(device)
    roof_ms = 1e3 * llm.facts["weight_bytes"] / bandwidth
    rows = []
    for temperature in setting.temperatures:
        for batch in setting.batches:
            rows.append(_row(llm, source, setting, (batch, temperature), roof_ms, report))
    peer_rows: list[PeerRow] = []
    for peer in peers:
        for batch in peer.batches:
            peer_rows += _against(llm, source, setting, peer, batch, report)
    cost = llm.engine.policy.measured_cost
    points = () if cost is None else zip(cost.rows, cost.seconds, strict=True)
    return BenchReport(
        machine=machine(device),
        model=llm.config.model,
        dtype=llm.facts["dtype"],
        max_tokens=setting.max_tokens,
        waves=setting.waves,
        timed=TIMED,
        peer_timed=PEER_TIMED,
        prompts=setting.prompts.name,
        prompts_sha256=hashlib.sha256(setting.prompts.read_bytes()).hexdigest(),
        rows=rows,
        peers=peer_rows,
        step_cost_ms={n: round(1e3 * seconds, 2) for n, seconds in points},
        weight_bytes=llm.facts["weight_bytes"],
        bandwidth_bytes_per_s=round(bandwidth),
    )


def _row(
    llm: LLM,
    source: PromptSource,
    setting: Setting,
    what: tuple[int, float],
    roof_ms: float,
    report: Callable[[str], None],
) -> Row:
    """One row of the report. what: (batch, temperature)."""
    batch, temperature = what
    params = setting.params(temperature)
    sides: dict[bool, list[TimedRun]] = {True: [], False: []}
    count = 1 if batch == 1 else setting.waves * batch
    name = f"batch {batch}, temperature {temperature:g}"
    report(f"{name}: warming up")
    for drafts in (True, False):  # warms up kernels and the draft policy's averages, as in a running service
        run_prompts(llm.engine, source.take(0, count), batch, params, drafts)
    for pair in range(setting.pairs):
        report(ProgressText(name, pair, setting.pairs, "pairs"))
        chosen = source.take(pair * count, count)
        for drafts in (True, False) if pair % 2 == 0 else (False, True):
            sides[drafts].append(run_prompts(llm.engine, chosen, batch, params, drafts))
        if sides[True][-1].tokens != sides[False][-1].tokens:
            raise EngineError(f"{name}, pair {pair}: speculation changed the tokens; this is a bug, please report it")
    ratios = [on.rate / off.rate for on, off in zip(sides[True], sides[False], strict=True)]
    on, off = _side(sides[True]), _side(sides[False])
    mean = statistics.geometric_mean(ratios)
    roof_share = round(roof_ms / off.ms_per_step, 3)
    return Row(batch, temperature, setting.pairs, on, off, mean, *bootstrap_interval(ratios), roof_share)


def _side(runs: list[TimedRun]) -> Side:
    seconds, num_steps = sum(run.seconds for run in runs), sum(run.num_steps for run in runs)
    phases = {name: sum(run.phases.get(name, 0.0) for run in runs) for name in runs[0].phases}
    num_tokens = sum(run.num_tokens for run in runs)
    return Side(
        tokens_per_s=round(num_tokens / seconds, 2),
        tokens_per_step=round(num_tokens / sum(run.num_choices for run in runs), 3),
        ms_per_step=round(1e3 * seconds / num_steps, 3),
        phase_ms={name: round(1e3 * value / num_steps, 3) for name, value in phases.items()},
        outside_forward=round(1.0 - phases["forward"] / sum(phases.values()), 4),
    )


def _against(
    llm: LLM, source: PromptSource, setting: Setting, peer: Peer, batch: int, report: Callable[[str], None]
) -> list[PeerRow]:
    """Rounds of three runs (peer, ours with drafts, ours without) in all orders, so that order effects cancel out."""
    theirs: list[Answers] = []
    ours: dict[bool, list[TimedRun]] = {True: [], False: []}
    params = setting.params(0.0)
    name = f"{peer.name}, batch {batch}"
    report(f"{name}: warming up")
    for number in range(-1, setting.pairs):  # the first round is a warm-up
        if number >= 0:
            report(ProgressText(name, number, setting.pairs, "rounds"))
        chosen = source.take(max(0, number) * batch, batch)
        for side in _ORDERS[number % len(_ORDERS)]:
            if isinstance(side, str):
                theirs.append(peer.decode(chosen, setting.max_tokens))
            else:
                ours[side].append(run_prompts(llm.engine, chosen, batch, params, side))
    return [_peer_row(peer.name, batch, drafts, ours[drafts][1:], theirs[1:]) for drafts in (True, False)]


def _peer_row(name: str, batch: int, drafts: bool, ours: list[TimedRun], theirs: list[Answers]) -> PeerRow:
    ratios = [run.total_rate / answers.rate for run, answers in zip(ours, theirs, strict=True)]
    low, high = bootstrap_interval(ratios)
    pairs = [
        pair for run, answers in zip(ours, theirs, strict=True) for pair in zip(run.tokens, answers.tokens, strict=True)
    ]
    return PeerRow(
        peer=name,
        batch=batch,
        rounds=len(ratios),
        drafts=drafts,
        tokens_per_s=round(statistics.geometric_mean([run.total_rate for run in ours]), 2),
        peer_tokens_per_s=round(statistics.geometric_mean([answers.rate for answers in theirs]), 2),
        ratio=statistics.geometric_mean(ratios),
        low=low,
        high=high,
        same_answers=sum(mine == their for mine, their in pairs),
        num_answers=len(pairs),
    )


def bootstrap_interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of the geometric mean, by bootstrap over pairs."""
    rng = random.Random(seed)
    means = sorted(statistics.geometric_mean(rng.choices(ratios, k=len(ratios))) for _ in range(_BOOTSTRAP_ROUNDS))
    return means[int(0.025 * _BOOTSTRAP_ROUNDS)], means[int(0.975 * _BOOTSTRAP_ROUNDS) - 1]
