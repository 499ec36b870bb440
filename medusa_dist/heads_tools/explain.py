"""`medusa-dist explain`: draws candidate trees, of a config or of real steps.

Owns the drawing. Not here: the steps (trace_steps.py), decoding (engine/).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.style import Style
from rich.text import Text
from rich.tree import Tree as Drawn

from medusa_dist.config import LOOKUP
from medusa_dist.heads_tools.steps.colours import style_of
from medusa_dist.heads_tools.trace_steps import TracedStep
from medusa_dist.medusa.trees.replay import Path
from medusa_dist.medusa.trees.tree import ROOT, order_paths

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR = 6
_TAIL = 60  # characters of the text so far
_ORDINALS = ("best", "2nd", "3rd")
_REJECTED = Style(dim=True)


def static_chances(paths: Sequence[Path], accuracies: Sequence[Sequence[float]]) -> dict[Path, float]:
    """Probability of each path by a head file's accuracies, as if the heads' errors were independent; {} if there are
    too few.

    accuracies: [head][r], top-(r + 1) accuracy.
    """
    if any(len(path) > len(accuracies) or path[-1] >= len(accuracies[len(path) - 1]) for path in paths):
        return {}
    chances: dict[Path, float] = {(): 1.0}
    for path in order_paths(paths):
        ranks, rank = accuracies[len(path) - 1], path[-1]
        share = ranks[rank] - (ranks[rank - 1] if rank else 0.0)
        chances[path] = chances[path[:-1]] * max(0.0, share)
    del chances[()]
    return chances


def likeliest(accuracies: Sequence[Sequence[float]], num_nodes: int) -> list[Path]:
    """The best static tree by a head file's accuracies."""
    if not accuracies or not accuracies[0]:
        return []
    ranks = [range(len(shares)) for shares in accuracies]
    paths: list[Path] = []
    open_paths: list[Path] = [(rank,) for rank in ranks[0]]
    while open_paths and len(paths) < num_nodes:
        chances = static_chances([*paths, *open_paths], accuracies)
        best = max(open_paths, key=lambda path: (chances[path], -len(path)))
        open_paths.remove(best)
        paths.append(best)
        open_paths += [(*best, rank) for rank in ranks[len(best)]] if len(best) < len(ranks) else []
    return order_paths(paths)


def draw_static(paths: Sequence[Path], accuracies: Sequence[Sequence[float]], name: str) -> Group:
    """A static tree: which guess of which head each node is, and its expected gain."""
    chances = static_chances(paths, accuracies)
    drawn = Drawn(Text(f"{name}: the token just emitted", style=style_of(0)))
    branches: dict[Path, Drawn] = {(): drawn}
    for path in order_paths(paths):
        label = Text(f"{list(path)} ", style=style_of(len(path)))
        label.append(f"{ordinal(path[-1])} guess of head {len(path)}", style="dim")
        if chances:
            label.append(f"  {_bar(chances[path])} {100 * chances[path]:.1f} %")
        branches[path] = branches[path[:-1]].add(label)
    return Group(drawn, Text(static_outcome(paths, chances), style="dim"))


def static_outcome(paths: Sequence[Path], chances: Mapping[Path, float]) -> str:
    """Size and expected gain of a static tree. chances: see static_chances."""
    deepest = max(map(len, paths), default=0)
    size = f"{len(paths)} nodes, {deepest} deep, by depth {_by_depth(paths)}"
    if chances:
        return f"{size}; expected {1 + sum(chances.values()):.2f} tokens/step, by the accuracies in heads.json"
    return f"{size}; heads.json has no accuracies for it: `medusa-dist eval-heads --write` measures them"


def draw_step(step: TracedStep, tokenizer: Any, number: int, before: Sequence[int]) -> Group:
    """A real step: accepted drafts in their head's colour, then the model's own choice; rejected drafts dim.

    before: the answer's tokens up to and including the root.
    """
    head = Text(f"step {number}  ", style="bold")
    head.append("… " if len(before) > 1 else "", style="dim")
    head.append(tokenizer.decode(list(before[:-1]))[-_TAIL:].replace("\n", "⏎"), style="dim")
    head.append(spelt(tokenizer, step.root), style="bold")
    drawn = Drawn(head)
    branches: dict[int, Drawn] = {ROOT: drawn}
    accepted = set(step.nodes)
    last = step.nodes[-1] if step.nodes else ROOT
    for node, (parent, token) in enumerate(zip(step.tree.parents, step.tree.tokens, strict=True)):
        hit = node in accepted
        style = style_of(step.tree.depths[node]) if hit else _REJECTED
        label = Text(f"{'✓' if hit else '·'} {spelt(tokenizer, token)}", style=style)
        label.append(f"  {_bar(step.chances[node])} {100 * step.chances[node]:.0f} %", style="" if hit else "dim")
        if LOOKUP in step.drafters[node]:
            label.append("  lookup", style="dim")
        branches[node] = branches[parent].add(label)
    branches[last].add(Text(f"➜ {spelt(tokenizer, step.tokens[-1])}  the model's own choice", style="bold"))
    return Group(drawn, Text(outcome(step), style="dim"))


def summary(steps: Sequence[TracedStep]) -> str:
    """Over all steps with drafts: drafted, expected, accepted."""
    num_tokens = sum(len(step.tokens) for step in steps)
    drafted = sum(len(step.tree) for step in steps)
    expected = sum(sum(step.values) for step in steps)
    accepted = sum(len(step.nodes) for step in steps)
    return (
        f"{num_tokens} tokens in {len(steps)} steps = {num_tokens / max(1, len(steps)):.2f} tokens/step; of {drafted} "
        f"drafts {expected:.1f} were expected to be accepted, {accepted} were"
    )


def show_steps(steps: Sequence[TracedStep], tokenizer: Any, console: Console) -> None:
    """Draw the steps one below the other, then the whole answer, coloured by which head guessed each token."""
    answer: list[int] = []
    text = Text()
    for number, step in enumerate(steps, start=1):
        if number > 1:  # the first step reads the prompt
            console.print(draw_step(step, tokenizer, number, answer))
            console.print()
        accepted = len(step.nodes)
        for i, token in enumerate(step.tokens):
            text.append(tokenizer.decode([token]), style=style_of(i + 1 if i < accepted else 0))
        answer += step.tokens
    console.print(text)
    console.print(summary(steps), style="dim", highlight=False)


def outcome(step: TracedStep) -> str:
    """Drafts of a step: verified, expected, accepted."""
    if not len(step.tree):
        return "nothing was drafted"
    expected = sum(step.values)
    return f"{len(step.tree)} drafts, {expected:.2f} expected to be accepted, {len(step.nodes)} accepted"


def ordinal(rank: int) -> str:
    """The place of a guess among its head's: best, 2nd, ..."""
    return _ORDINALS[rank] if rank < len(_ORDINALS) else f"{rank + 1}th"


def _by_depth(paths: Sequence[Path]) -> str:
    counts = [sum(len(path) == depth for path in paths) for depth in range(1, max(map(len, paths), default=0) + 1)]
    return "/".join(map(str, counts)) or "0"


def spelt(tokenizer: Any, token: int) -> str:
    """A token in quotes, with spaces and line ends visible."""
    spelt: str = tokenizer.decode([token])
    return f"'{spelt}'".replace("\n", "⏎").replace("\t", "⇥")


def _bar(share: float) -> str:
    eighths = round(8 * _BAR * min(1.0, max(0.0, share)))
    return ("█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")).ljust(_BAR)
