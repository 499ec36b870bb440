"""`medusa-dist generate`: one answer in the terminal, tokens coloured by head.

Owns the text and its summary line. Not here: decoding (llm.py), the tree of a step (explain.py).
"""

import time

from rich.console import Console
from rich.text import Text

from medusa_dist.config import LOOKUP
from medusa_dist.engine.steps.record import LoggedStep, VerifiedTree
from medusa_dist.heads_tools.explain import draw_step
from medusa_dist.heads_tools.steps.colours import HEAD_STYLES, style_of
from medusa_dist.heads_tools.steps.show import traced
from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.text_stream import TextDelta


class _BestStep:
    """An observer of steps that keeps the one with most accepted drafts, the first among equals."""

    def __init__(self) -> None:
        self.tree: VerifiedTree | None = None
        self.number = 0
        self._num_steps = 0

    def __call__(self, record: LoggedStep) -> None:
        for tree in record.trees:
            self._num_steps += 1
            if len(tree.accepted) > (0 if self.tree is None else len(self.tree.accepted)):
                self.tree, self.number = tree, self._num_steps


def generate(llm: LLM, prompt: str, params: SamplingParams, *, chat: bool, tree: bool, console: Console) -> None:
    """Stream the answer; the text of a step appears at once. Then print speed and acceptance.

    chat: apply the model's chat template to the prompt. tree: draw the step in which most drafts were accepted.
    Raises RequestError.
    """
    best = _BestStep()
    if tree:
        llm.engine.recorder.observers.append(best)
    ids = llm.chat_ids([{"role": "user", "content": prompt}]) if chat else prompt
    begin = time.perf_counter()
    first_s = 0.0
    deltas: list[TextDelta] = []
    for delta in llm.stream(ids, params):
        first_s = first_s or time.perf_counter() - begin
        deltas.append(delta)
        console.print(coloured(llm, delta), end="", soft_wrap=True)
    console.print()
    console.print(summary(deltas, first_s, time.perf_counter() - begin), style="dim", highlight=False)
    console.print(legend(llm))
    if best.tree is not None:
        answer = [token for delta in deltas for token in delta.token_ids]
        console.print()
        console.print(draw_step(traced(best.tree), llm.tokenizer, best.number, answer[: best.tree.position]))


def coloured(llm: LLM, delta: TextDelta) -> Text:
    """The visible text of a step, each token in its head's colour where tokens and text can be matched."""
    parts = [llm.tokenizer.decode([token], skip_special_tokens=True) for token in delta.token_ids]
    if "".join(parts) != delta.text:  # held-back or merged characters: use the colour of the step's deepest head
        return Text(delta.text, style=style_of(max(delta.heads, default=0)))
    text = Text()
    for part, head in zip(parts, delta.heads, strict=True):
        text.append(part, style=style_of(head))
    return text


def legend(llm: LLM) -> Text:
    """Which colour is which head."""
    text = Text("colours: ", style="dim")
    text.append("model", style=style_of(0))
    if llm.facts["speculation"].startswith("medusa"):
        for head in range(1, len(HEAD_STYLES) - 1):
            text.append(f"  head {head}", style=style_of(head))
    return text


def summary(deltas: list[TextDelta], first_s: float, total_s: float) -> str:
    """Tokens, steps, speed, and accepted drafts by head."""
    if not deltas:
        return "no tokens"
    stats = sum((d.stats for d in deltas[1:]), start=deltas[0].stats)
    num_tokens = sum(len(d.token_ids) for d in deltas)
    heads = ", ".join(f"head {k}: {n}" for k, n in enumerate(stats.accepted_per_head, start=1) if n)
    line = (
        f"{num_tokens} tokens in {stats.num_steps} steps = {num_tokens / max(1, stats.num_steps):.2f} tokens/step; "
        f"{num_tokens / total_s:.1f} tokens/s, first after {first_s:.2f} s"
    )
    drafts = f"{stats.num_accepted} of {stats.num_drafted} drafts accepted" + (f" ({heads})" if heads else "")
    lookup = stats.accepted_by.get(LOOKUP, 0)
    return f"{line}; {drafts}" + (f", {lookup} of them found by lookup" if lookup else "")
