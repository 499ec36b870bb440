"""A model without tensors: its next token is a pure function of the tokens before, read back from a simulated KV pool.

What a row may see is looked up slot by slot, so a wrong slot, block table, copy or mask changes the output.
"""

import random

import numpy as np

from medusa_dist.engine.runner.plan import Plan
from medusa_dist.engine.scheduler.scheduler import Scheduler
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.block_pool import BlockPool
from medusa_dist.engine.state.limits import Limits
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.medusa.trees.accept import Frontier, accept
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS, SCRATCH_BLOCK
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

VOCAB = 11
EOS = 10


def truth(tokens: tuple[int, ...]) -> int:
    """The model: any token but the last three most of the time, so that outputs have some length."""
    number = hash(tokens) % 1009
    return number % VOCAB if number % 17 == 0 else number % (VOCAB - 3)


def continuation(request: Request, max_model_len: int) -> tuple[tuple[int, ...], str]:
    """What plain decoding gives: output ids and finish reason."""
    params, output = request.params, ()
    while True:
        output += (truth((*request.prompt_ids, *output)),)
        if output[-1] in params.stop_token_ids or (output[-1] == EOS and not params.ignore_eos):
            return output, "stop"
        if len(output) == params.max_tokens or len(request.prompt_ids) + len(output) == max_model_len:
            return output, "length"


class FakeWorker:
    """Executes plans like engine/runner/worker.py, on a dictionary: slot -> (position, token)."""

    answer = staticmethod(truth)

    def __init__(self, max_running: int, max_blocks: int) -> None:
        self.memory: dict[int, tuple[int, int]] = {}
        self.tables = np.zeros((max_running, max_blocks), dtype=np.int64)

    def execute(self, plan: Plan) -> list[int]:
        """The model's choice after each wanted row."""
        begin = 0
        for slot, kept, count in zip(plan.batch_indices, plan.num_kept_blocks, plan.num_new_blocks, strict=True):
            self.tables[slot, kept : kept + count] = plan.blocks[begin : begin + count]
            begin += count
        moved = [self.memory[int(source)] for source in plan.copy_sources]
        assert len(set(plan.copy_targets.tolist())) == plan.copy_targets.size, "two rows move to one place"
        self.memory.update(zip(plan.copy_targets.tolist(), moved, strict=True))
        choices: list[int] = []
        tokens, parents = plan.token_ids.tolist(), plan.parents.tolist()
        written: set[int] = set()
        for slot, start, chain, nodes, wanted in zip(
            plan.batch_indices,
            plan.num_computed_tokens,
            plan.num_new_tokens,
            plan.num_draft_tokens,
            plan.needs_logits,
            strict=True,
        ):
            rows, tokens = tokens[: chain + nodes], tokens[chain + nodes :]
            tree, parents = parents[:nodes], parents[nodes:]
            choices += self._sequence(self.tables[slot], int(start), rows, tree, bool(wanted), written)
        return choices

    def _sequence(
        self, table: np.ndarray, start: int, rows: list[int], tree: list[int], wanted: bool, written: set[int]
    ) -> list[int]:
        def place(column: int) -> int:
            block = int(table[column // BLOCK_TOKENS])
            assert block != SCRATCH_BLOCK
            return block * BLOCK_TOKENS + column % BLOCK_TOKENS

        chain = len(rows) - len(tree)
        root = start + chain - 1
        paths: list[list[int]] = []
        for node, parent in enumerate(tree):
            paths.append([*(paths[parent] if parent >= 0 else []), node])
        views = [[*range(start + i + 1)] for i in range(chain)]
        views += [[*range(root + 1), *(root + 1 + node for node in path)] for path in paths]
        for i, (token, view) in enumerate(zip(rows, views, strict=True)):
            slot = place(start + i)
            assert slot not in written, "two rows are written to one place"
            written.add(slot)
            self.memory[slot] = (len(view) - 1, token)
        if not wanted:
            return []
        choices = []
        for view in views[chain - 1 :]:
            seen = [self.memory[place(column)] for column in view]
            assert [position for position, _ in seen] == list(range(len(view))), "a row stands where another belongs"
            choices.append(self.answer(tuple(token for _, token in seen)))
        return choices


class FakeEngine:
    """schedule -> execute -> accept -> emit -> draft, with heads that are right with chance `skill`."""

    def __init__(self, limits: Limits, num_blocks: int, speculation: TreePolicy, skill: float, seed: int = 0) -> None:
        self.scheduler = Scheduler(limits, BlockPool(num_blocks), speculation, generation=3)
        self.worker = FakeWorker(limits.max_running, -(-(limits.max_model_len + 64) // BLOCK_TOKENS))
        self.skill = skill
        self.rng = random.Random(seed)
        self.outputs: dict[str, Output] = {}
        self.plans: list[Plan] = []

    def submit(self, name: str, prompt: tuple[int, ...], output_ids: tuple[int, ...] = (), **params: object) -> Request:
        about = {field: params.pop(field) for field in ("priority", "cache_salt") if field in params}
        request = Request(request_id=name, prompt_ids=prompt, params=SamplingParams(**params), seed=1, **about)
        self.scheduler.submit(request, output_ids)
        return request

    def step(self) -> list[Output]:
        plan = self.scheduler.schedule(len(self.plans))
        self.plans.append(plan)
        sequences = self.scheduler.sequences_with_logits(plan)
        choices = self.worker.execute(plan)
        firsts = np.cumsum([0, *(len(s.tree) + 1 for s in sequences)])
        assert firsts[-1] == len(choices)

        def choose(stands: list[Frontier]) -> list[int]:
            return [choices[firsts[tree] + 1 + node] for tree, node, _ in stands]

        walks = accept([s.tree for s in sequences], choose)
        outputs = self.scheduler.emit(
            plan, [StepResult(s, walk, (), 0) for s, walk in zip(sequences, walks, strict=True)]
        )
        self.scheduler.check_integrity()
        for sequence in sequences:
            if sequence.finish_reason is None and sequence.request.params.speculation:
                sequence.candidates = {"heads": self.draft(sequence)}
        for output in outputs:
            before = self.outputs.get(output.request_id)
            self.outputs[output.request_id] = output if before is None else before.merged(output)
        return outputs

    def draft(self, sequence: Sequence, heads: int = 4, ranks: int = 3) -> Candidates:
        """Random guesses; the true one stands at a random rank with chance `skill` at each depth."""
        tokens = np.array([[self.rng.randrange(VOCAB) for _ in range(ranks)] for _ in range(heads)])
        path = tuple(sequence.tokens)
        for head in range(heads):
            path += (truth(path),)
            if self.rng.random() < self.skill:
                tokens[head, self.rng.randrange(ranks)] = path[-1]
        chances = np.array([sorted((self.rng.random() for _ in range(ranks)), reverse=True) for _ in range(heads)])
        return Candidates(tokens.astype(np.int64), chances.astype(np.float32))

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("requests do not come to an end")
