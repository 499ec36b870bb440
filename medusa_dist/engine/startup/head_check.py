"""Do these heads know this model? Seen before serving, on a fixed text, through the real ranks.

Owns the text, what counts as chance, and the refusal. Not here: the fingerprint (medusa/heads/heads_file.py), accuracy
in earnest (heads_tools/eval_heads.py). Heads can load without a complaint and guess nothing: made for another model,
never trained, wired wrongly. Such a service is exact and slower than one without heads, and nobody sees why. So: one
pass over the text; where the text goes on as the model would (there it is like serving), head 1 guesses the token
after, and the model's own choice is the truth. Chance is what a head gets that always guesses the commonest of those
choices. A head at or below chance is refused. A model that hardly ever goes on like the text (another language, random
weights) leaves too few places to judge by, and nothing is refused.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from medusa_dist.engine.runner.broadcast import RankGroup
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.spec.drafter import Drafter
from medusa_dist.engine.startup.step_cost import rows_plan
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.errors import HeadsError
from medusa_dist.medusa.trees.accept import Accepted
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
MIN_PLACES = 16  # fewer say nothing


@dataclass(frozen=True)
class HeadsCheck:
    """hits of places: head 1's best guess was the model's choice. commonest: places with the most frequent choice."""

    hits: int
    places: int
    commonest: int

    @property
    def is_judged(self) -> bool:
        """Whether there were places enough."""
        return self.places >= MIN_PLACES

    def __str__(self) -> str:
        if not self.is_judged:
            return f"not judged: the model goes on like the self-check's text in {self.places} places only"
        return (
            f"head 1 is right in {self.hits} of {self.places} places of the self-check's text (chance: "
            f"{self.commonest})"
        )

    def refuse_chance(self) -> None:
        """Raise HeadsError if the heads were judged and are no better than chance."""
        if self.is_judged and self.hits <= self.commonest:
            raise HeadsError(
                f"heads: no better than chance: {self}. They are untrained, made for another model, or their file is "
                "mixed up. Train heads for this model, or set heads.allow_untrained: true to draft with them anyway "
                "(output stays exact, speed will suffer)"
            )


def text_ids(folder: Path) -> list[int]:
    """The text in the model's tokens; empty if its folder has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    ids: list[int] = Tokenizer.from_file(str(file)).encode(TEXT).ids
    return ids[:MAX_TOKENS]


def check_heads(ranks: RankGroup, drafter: Drafter, ids: list[int], most_rows: int) -> HeadsCheck:
    """One pass over `ids`, at most most_rows rows at a time. Before any request: uses slot 0 and the first blocks."""
    ids = ids[: (ranks.worker.pool.num_blocks - 1) * BLOCK_TOKENS]
    if len(ids) < MIN_PLACES:
        return HeadsCheck(0, 0, 0)
    scores = _read(ranks, ids, most_rows)
    truth = scores.choices
    places = [i for i in range(len(ids) - 1) if ids[i + 1] == truth[i]]
    if len(places) < MIN_PLACES:
        return HeadsCheck(0, len(places), 0)
    verdicts = [_verdict(ids, place) for place in places]
    drafter.draft(verdicts, scores)
    guesses = [_first_guess(verdict.sequence) for verdict in verdicts]
    wanted = [int(truth[place + 1]) for place in places]
    hits = sum(guess == token for guess, token in zip(guesses, wanted, strict=True))
    return HeadsCheck(hits, len(places), max(wanted.count(token) for token in set(wanted)))


def _read(ranks: RankGroup, ids: list[int], most_rows: int) -> Scores:
    """The model's choice after each token of ids, and its hidden state there."""
    parts = []
    for start in range(0, len(ids), most_rows):
        tokens: Ints = np.array(ids[start : start + most_rows], dtype=np.int64)
        plan = rows_plan(ranks, tokens.size, start)
        parts.append(ranks.verify(replace(plan, token_ids=tokens)))
    choices: Ints = np.concatenate([part.choices for part in parts])
    return Scores(choices, {}, torch.cat([part.hidden for part in parts]))


def _verdict(ids: list[int], place: int) -> StepResult:
    """What a step would say that read ids[place] and emitted the token after it."""
    params = SamplingParams(temperature=0.0)
    request = Request(request_id="self-check", prompt_ids=tuple(ids[: place + 1]), params=params, seed=0)
    emitted = ids[place + 1]
    return StepResult(SingleSequence(request, (emitted,)).root, Accepted((), (emitted,)), (), place)


def _first_guess(sequence: Sequence) -> int | None:
    """What head 1 thinks most likely."""
    if sequence.candidates is None:
        return None
    tree, _ = best_tree(sequence.candidates, 1, 1)
    return tree.tokens[0] if len(tree) else None
