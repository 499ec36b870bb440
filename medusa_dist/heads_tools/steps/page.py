"""Drawings of candidate trees as one HTML file: SVG inside, no script, nothing fetched.

Owns pictures, their layout and the file. Not here: what is drawn in a terminal (heads_tools/explain.py).
Depth runs to the right; a parent stands beside the middle of its children.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from medusa_dist.config import LOOKUP
from medusa_dist.errors import ConfigError
from medusa_dist.heads_tools.explain import ordinal, outcome, spelt, static_chances, static_outcome
from medusa_dist.heads_tools.trace_steps import TracedStep
from medusa_dist.medusa.trees.replay import Path as GuessPath
from medusa_dist.medusa.trees.tree import ROOT, order_paths

_X, _Y, _WIDE, _HIGH = 190, 50, 140, 30  # pixels: between depths, between leaves, and of a box
_MOST = 15  # characters in a box
_TABLE_COLUMNS = 110
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --dim: #656d76; --line: #8c959f; --paper: #ffffff; --root: #eaeef2;
  --own: #0969da; --h1: #1a7f37; --h2: #0b7285; --h3: #9a6700; --h4: #8250df; --h5: #bf3989; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #8d96a0; --line: #6e7681; --paper: #0d1117;
  --root: #21262d; --own: #4493f8; --h1: #3fb950; --h2: #39c5cf; --h3: #d29922; --h4: #ab7df8; --h5: #db61a2; } }
body { margin: 2rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
pre { font: 13px/1.35 ui-monospace, "DejaVu Sans Mono", monospace; overflow-x: auto; }
section { margin: 2rem 0; overflow-x: auto; }
h2 { font-size: 16px; margin: 0; }
p { margin: .2rem 0; color: var(--dim); }
.box { fill: var(--paper); stroke: var(--line); stroke-width: 1.5; }
.root { fill: var(--root); }
.own { stroke: var(--own); stroke-width: 2; }
.rejected { stroke-dasharray: 5 4; }
.edge { fill: none; stroke: var(--line); stroke-width: 1.5; }
.edge.own { stroke-width: 3; }
.d1 { stroke: var(--h1); } .d2 { stroke: var(--h2); } .d3 { stroke: var(--h3); } .d4 { stroke: var(--h4); }
.d5 { stroke: var(--h5); }
.accepted { stroke-width: 2.5; }
text { fill: var(--ink); text-anchor: middle; font: 600 13px ui-monospace, "DejaVu Sans Mono", monospace; }
text.note { fill: var(--dim); font: 11px system-ui, "DejaVu Sans", sans-serif; }
text.rejected { fill: var(--dim); font-weight: 400; }
"""


@dataclass(frozen=True, slots=True)
class PictureNode:
    """parent: another node, or ROOT. text: in the box. note: below it. kind: accepted, rejected, guess or own."""

    parent: int
    text: str
    note: str
    kind: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A tree to draw, parents before children. title and captions: lines above and below it."""

    title: str
    root: str
    nodes: tuple[PictureNode, ...]
    captions: tuple[str, ...] = ()


def step_picture(step: TracedStep, tokenizer: Any, title: str, *captions: str) -> Picture:
    """A real step: its drafts, and the model's own choice after the accepted ones."""
    nodes = []
    for node, (parent, token) in enumerate(zip(step.tree.parents, step.tree.tokens, strict=True)):
        kind = "accepted" if node in step.nodes else "rejected"
        by = ", lookup" if LOOKUP in step.drafters[node] else ""
        nodes.append(PictureNode(parent, spelt(tokenizer, token), f"{100 * step.chances[node]:.0f} %{by}", kind))
    last = step.nodes[-1] if step.nodes else ROOT
    nodes.append(PictureNode(last, spelt(tokenizer, step.tokens[-1]), "the model's own choice", "own"))
    return Picture(title, spelt(tokenizer, step.root), tuple(nodes), (outcome(step), *captions))


def static_picture(paths: Sequence[GuessPath], accuracies: Sequence[Sequence[float]], name: str) -> Picture:
    """A static tree: which guess of which head each node is."""
    chances = static_chances(paths, accuracies)
    numbers: dict[GuessPath, int] = {(): ROOT}
    nodes: list[PictureNode] = []
    for path in order_paths(paths):
        share = f", {100 * chances[path]:.1f} %" if chances else ""
        numbers[path] = len(nodes)
        nodes.append(PictureNode(numbers[path[:-1]], str(list(path)), f"{ordinal(path[-1])} guess{share}", "guess"))
    return Picture(name, "last token", tuple(nodes), (static_outcome(paths, chances),))


def as_html(title: str, pictures: Sequence[Picture], tables: Sequence[RenderableType] = ()) -> str:
    """The whole file."""
    sections = "".join(map(_section, pictures))
    shown = f"<pre>{escape(_plain(tables))}</pre>\n" if tables else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{shown}{sections}</body>\n</html>\n"
    )


def write_html(path: Path, html: str) -> None:
    """Write the file. Raises ConfigError if that fails."""
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html: {path} cannot be written: {error.strerror}") from None


def as_svg(picture: Picture) -> str:
    """One tree."""
    depths, rows = _layout(picture.nodes)
    places = [(depth * _X + 10, row * _Y + 10) for depth, row in zip(depths, rows, strict=True)]
    wide, high = max(depths) * _X + _WIDE + 20, (max(rows) + 1) * _Y + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high:g}" width="{wide}" height="{high:g}" '
        f'role="img" aria-label="{escape(picture.title, quote=True)}">'
    ]
    for node, (place, depth) in zip(picture.nodes, zip(places[1:], depths[1:], strict=True), strict=True):
        parts.append(_edge(places[node.parent + 1], place, f"edge {_classes(node, depth)}"))
    parts.append(_box(places[0], picture.root, "", "root"))
    for node, (place, depth) in zip(picture.nodes, zip(places[1:], depths[1:], strict=True), strict=True):
        parts.append(_box(place, node.text, node.note, _classes(node, depth)))
    return "\n".join([*parts, "</svg>"])


def _layout(nodes: Sequence[PictureNode]) -> tuple[list[int], list[float]]:
    """Depth and row of the root and of each node; leaves have rows of their own."""
    children: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        children.setdefault(node.parent, []).append(number)
    depths, rows = [0] * (len(nodes) + 1), [0.0] * (len(nodes) + 1)
    num_leaves = 0

    def place(number: int, depth: int) -> None:
        nonlocal num_leaves
        depths[number + 1] = depth
        below = children.get(number, [])
        for child in below:
            place(child, depth + 1)
        if below:
            rows[number + 1] = (rows[below[0] + 1] + rows[below[-1] + 1]) / 2
        else:
            rows[number + 1] = num_leaves
            num_leaves += 1

    place(ROOT, 0)
    return depths, rows


def _classes(node: PictureNode, depth: int) -> str:
    coloured = node.kind in ("accepted", "guess")
    return f"{node.kind} d{min(depth, 5)}" if coloured else node.kind


def _edge(begin: tuple[float, float], end: tuple[float, float], classes: str) -> str:
    (x, y), (to_x, to_y) = (begin[0] + _WIDE, begin[1] + _HIGH / 2), (end[0], end[1] + _HIGH / 2)
    middle = (x + to_x) / 2
    return f'<path class="{classes}" d="M{x:g} {y:g} C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}"/>'


def _box(place: tuple[float, float], text: str, note: str, classes: str) -> str:
    x, y = place
    short = text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
    kind = classes.split(maxsplit=1)[0]
    below = f'<text class="note" x="{x + _WIDE / 2:g}" y="{y + _HIGH + 12:g}">{escape(note)}</text>' if note else ""
    return (
        f'<g><title>{escape(text)}</title><rect class="box {classes}" x="{x:g}" y="{y:g}" width="{_WIDE}" '
        f'height="{_HIGH}" rx="6"/><text class="{kind}" x="{x + _WIDE / 2:g}" y="{y + 20:g}">{escape(short)}</text>'
        f"{below}</g>"
    )


def _section(picture: Picture) -> str:
    captions = "".join(f"<p>{escape(caption)}</p>" for caption in picture.captions)
    return f"<section>\n<h2>{escape(picture.title)}</h2>\n{as_svg(picture)}\n{captions}\n</section>\n"


def _plain(tables: Sequence[RenderableType]) -> str:
    console = Console(width=_TABLE_COLUMNS, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
            console.print()
    return capture.get()
