"""Whole engines over tiny random models with heads that are right now and then."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_dist.config import Config, SpeculationConfig, parse_config
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.state.block_pool import BlockPool
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_heads import save_heads
from tests.support.tiny_models import configs

VOCAB = 31
EOS = 2
STATIC = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0), (2, 0))
POSITIONS = 400  # longer than a chunk of keys


def save_model(name: str, folder: Path) -> PreTrainedModel:
    """A random model of the kind `name` in `folder`, and in folder/heads three heads for it."""
    torch.manual_seed(0)
    config = configs()[name]
    config.vocab_size = VOCAB
    config.max_position_embeddings = POSITIONS
    # Torch's vectorised functions treat what is left of two registers (32 numbers) with scalar code, which rounds
    # differently; with whole registers per row, a row's place in the batch does not matter.
    config.intermediate_size = config.ffn_dim = 64
    config._attn_implementation = config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_heads(folder / "heads", config.hidden_size, VOCAB)
    return model


def tiny_config(folder: Path, **keys: object) -> Config:
    """Speculation with up to 15 nodes unless `keys` say otherwise."""
    given: dict[str, object] = {
        "model": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "heads": {"source": str(folder / "heads")},
        "speculation": {"mode": "auto", "max_nodes": 15},
        "max_running": 8,
        "kv_cache_tokens": 2048,
        "max_batched_tokens": 64,
    }
    return parse_config(given | keys)


@dataclass(frozen=True)
class Setting:
    """How an engine decodes; nothing here may change a token."""

    nodes: int | None = 0  # dynamic trees of at most so many; None = the static tree of `paths`; 0 = off
    paths: tuple[tuple[int, ...], ...] = STATIC
    skill: float | None = None  # None: the real heads; else an oracle that is right with this chance at each depth
    num_blocks: int = 128
    max_batched_tokens: int = 64
    max_running: int = 8


@dataclass
class Run:
    """Outputs by request, and each token's logits: (request, position) -> row [V]."""

    outputs: dict[str, Output] = field(default_factory=dict)
    logits: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    num_preemptions: int = 0
    num_steps: int = 0

    @property
    def drafted(self) -> int:
        return sum(output.stats.num_drafted for output in self.outputs.values())

    @property
    def accepted(self) -> int:
        return sum(output.stats.num_accepted for output in self.outputs.values())


class Oracle:
    """Stands in for the heads: knows the outputs, and tells the truth at a random rank with chance `skill`."""

    num_heads = 4

    def __init__(self, truth: dict[str, tuple[int, ...]], skill: float, num_guesses: int = 3) -> None:
        self.truth, self.skill, self.num_guesses = truth, skill, num_guesses
        self.rng = random.Random(5)

    def draft(self, verdicts: list[StepResult], _scores: Scores) -> list[Candidates | None]:
        made: list[Candidates | None] = []
        for sequence in (v.sequence for v in verdicts):
            if sequence.finish_reason is not None:
                made.append(None)
                continue
            done = sequence.num_output_tokens
            coming = self.truth[sequence.request.request_id][done : done + self.num_heads]
            tokens = [[self.rng.randrange(VOCAB) for _ in range(self.num_guesses)] for _ in range(self.num_heads)]
            for guesses, token in zip(tokens, coming, strict=False):
                if self.rng.random() < self.skill:
                    guesses[self.rng.randrange(3)] = token
            chances = [sorted((self.rng.random() for _ in guesses), reverse=True) for guesses in tokens]
            made.append(Candidates(np.array(tokens), np.array(chances, dtype=np.float32)))
        return made


def engine_over(rank: EngineRank, setting: Setting, truth: dict[str, tuple[int, ...]] | None = None) -> Engine:
    """Another engine around the same model, pool and heads. truth: what the oracle knows."""
    old = rank.engine
    assert old is not None
    if setting.nodes is None:
        config = SpeculationConfig(mode="static", tree=setting.paths)
    else:
        config = SpeculationConfig(mode="auto", max_nodes=setting.nodes)
    # No cost curve: trees do not depend on what the clock says.
    speculation = TreePolicy(config, cost=None)
    old_limits = old.scheduler.limits
    limits = Limits(
        max_running=setting.max_running,
        max_batched_tokens=setting.max_batched_tokens,
        max_model_len=old_limits.max_model_len,
        vocab_size=old_limits.vocab_size,
        eos_ids=old_limits.eos_ids,
        graph_buckets=old.ranks.worker.buckets,
    )
    scheduler = Scheduler(limits, BlockPool(setting.num_blocks), speculation, old.ranks.generation)
    drafters = dict(old.drafters) if setting.nodes != 0 else {}
    if setting.skill is not None:
        assert truth is not None
        widest = max(max(path) for path in setting.paths) if setting.nodes is None else 2
        drafters |= {"heads": Oracle(truth, setting.skill, max(3, widest + 1))}
    return Engine(scheduler, old.ranks, old.token_selector, drafters, speculation, old.grammars)


def request(name: str, prompt: Iterable[int], seed: int = 0, **params: object) -> Request:
    return Request(request_id=name, prompt_ids=tuple(prompt), params=SamplingParams(**params), seed=seed)


def decode(
    engine: Engine,
    requests: list[Request],
    *,
    arrivals: list[int] | None = None,
    after_step: Callable[[Engine], None] = lambda _: None,
    known: dict[str, tuple[int, ...]] | None = None,
) -> Run:
    """Run all requests to their ends. arrivals[i]: the step before which request i comes."""
    run = Run()
    waiting = sorted(zip(arrivals or [0] * len(requests), requests, strict=True), key=lambda pair: pair[0])
    real_judge = engine.token_selector.select

    def judge(plan: Plan, scores: Scores, sequences: list) -> list:
        verdicts = real_judge(plan, scores, sequences)
        first = 0
        for verdict in verdicts:
            name, size = verdict.sequence.request.request_id, len(verdict.sequence.tree)
            for i, node in enumerate((-1, *verdict.accepted.nodes)):
                row = first + 1 + node
                where = (name, len(verdict.sequence.tokens) + i)
                run.logits[where] = all_logits[0][row].clone()
            first += size + 1
        return verdicts

    all_logits: list[torch.Tensor] = []
    model = engine.ranks.worker.model

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        all_logits[:] = [output.reshape(-1, output.shape[-1])]

    hook = model.output_head.register_forward_hook(keep)
    engine.token_selector.select = judge
    try:
        while waiting or engine.has_work:
            while waiting and waiting[0][0] <= run.num_steps:
                one = waiting.pop(0)[1]
                engine.submit(one, (known or {}).get(one.request_id, ()))
            if engine.has_work:
                for output in engine.step():
                    before = run.outputs.get(output.request_id)
                    run.outputs[output.request_id] = output if before is None else before.merged(output)
                engine.scheduler.check_integrity()
                after_step(engine)
            run.num_steps += 1
            assert run.num_steps < 3000
    finally:
        engine.token_selector.select = real_judge
        hook.remove()
    run.num_preemptions = engine.scheduler.num_preemptions
    pool = engine.scheduler.pool
    assert pool.num_free == pool.num_usable
    return run
