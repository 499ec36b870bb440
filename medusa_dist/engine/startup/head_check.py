"""Self-check of the heads at start-up: head 1 must beat chance on a fixed text.

Owns the text, the definition of chance, and the refusal. Not here: the fingerprint (model/fingerprint.py), accuracy on
real prompts (heads_tools/eval_heads.py).
Heads can load without an error and still guess nothing: made for another model, never trained, or wired wrongly. Such a
service is exact but slower than one without heads, and nothing shows why. So all ranks run one pass over the text.
Wherever the text continues as the model would (there the situation is that of serving), head 1 guesses the token after
that one and is compared with the model's own choice. Chance is the hit count of a head that always guesses the most
frequent of those choices. A head at or below chance is refused. If the model hardly ever continues like the text
(another language, random weights), there are too few positions, and nothing is refused.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.startup.step_cost import rows_plan
from medusa_dist.engine.state.block_pool import blocks_for
from medusa_dist.engine.state.sequence import StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.errors import HeadsError
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.candidates import Candidates
from medusa_dist.medusa.trees.tree import best_tree
from medusa_dist.ops.arrays import Ints
from medusa_dist.ops.attention.kv_cache import BLOCK_TOKENS
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

TEXT = """To add up the numbers in a list in Python, you can write a function like this:

```python
def add_numbers(numbers):
    total = 0
    for number in numbers:
        total += number
    return total

print(add_numbers([1, 2, 3]))
```

The function takes a list of numbers as input and returns the sum of all the numbers in the list. The water cycle \
describes how water moves."""

MAX_TOKENS = 96  # one pass of a few hundred milliseconds for the demo model on a CPU
MIN_PLACES = 16  # too few to decide below this


@dataclass(frozen=True)
class HeadsCheck:
    """hits: of `places` positions, those where head 1's best guess was the model's choice.

    commonest: positions with the most frequent choice.
    """

    hits: int
    places: int
    commonest: int

    @property
    def is_judged(self) -> bool:
        """Whether there were enough positions."""
        return self.places >= MIN_PLACES

    def __str__(self) -> str:
        if not self.is_judged:
            return f"not checked: the model continues like the self-check's text at only {self.places} positions"
        return (
            f"head 1 is right at {self.hits} of {self.places} positions of the self-check's text (chance: "
            f"{self.commonest})"
        )

    def refuse_chance(self) -> None:
        """Raise HeadsError if the heads were checked and are no better than chance."""
        if self.is_judged and self.hits <= self.commonest:
            raise HeadsError(
                f"heads: no better than chance: {self}. They are untrained, made for another model, or have their "
                "tensors mixed up. Train heads for this model, or set heads.allow_untrained: true to draft with them "
                "anyway (output stays exact, but will be slower)"
            )


def text_ids(folder: Path) -> list[int]:
    """The text as token ids of the model; empty if its folder has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    ids: list[int] = Tokenizer.from_file(str(file)).encode(TEXT).ids
    return ids[:MAX_TOKENS]


def check_heads(ranks: RankGroup, drafter: Drafter, ids: list[int], most_rows: int) -> HeadsCheck:
    """One pass over `ids`, at most most_rows rows at a time. Uses batch index 0 and the first blocks: call it first."""
    ids = ids[: (ranks.worker.pool.num_blocks - 1) * BLOCK_TOKENS]
    if len(ids) < MIN_PLACES:
        return HeadsCheck(0, 0, 0)
    scores = _read(ranks, ids, most_rows)
    truth = scores.choices
    positions = [i for i in range(len(ids) - 1) if ids[i + 1] == truth[i]]
    if len(positions) < MIN_PLACES:
        return HeadsCheck(0, len(positions), 0)
    results = [_verdict(ids, place) for place in positions]
    guesses = [_first_guess(candidates) for candidates in drafter.draft(results, scores)]
    wanted = [int(truth[place + 1]) for place in positions]
    hits = sum(guess == token for guess, token in zip(guesses, wanted, strict=True))
    return HeadsCheck(hits, len(positions), max(wanted.count(token) for token in set(wanted)))


def _read(ranks: RankGroup, ids: list[int], most_rows: int) -> Scores:
    """The model's choice after each token of ids, and its hidden state there."""
    parts = []
    for start in range(0, len(ids), most_rows):
        tokens: Ints = np.array(ids[start : start + most_rows], dtype=np.int64)
        plan = rows_plan(ranks, tokens.size, start)
        parts.append(ranks.verify(replace(plan, token_ids=tokens)))
    choices: Ints = np.concatenate([part.choices for part in parts])
    return Scores(choices, {}, torch.cat([part.hidden for part in parts]))


def _verdict(ids: list[int], position: int) -> StepResult:
    """The result of a step that read ids[position] and emitted the token after it."""
    params = SamplingParams(temperature=0.0)
    request = Request(request_id="self-check", prompt_ids=tuple(ids[: position + 1]), params=params, seed=0)
    emitted = ids[position + 1]
    sequence = SingleSequence(request, (emitted,)).root
    sequence.block_table = list(range(1, 1 + blocks_for(position + 1)))  # those of _read's plans
    return StepResult(sequence, Accepted((), (emitted,)), (), position)


def _first_guess(candidates: Candidates | None) -> int | None:
    """Head 1's best guess."""
    if candidates is None:
        return None
    tree, _ = best_tree(candidates, 1, 1)
    return tree.tokens[0] if len(tree) else None
