"""Sequential heads: one cell, applied once per draft token, sees the tokens drafted before.

Owns the forward pass of the form "sequential", which guesses are extended, and which module a file needs. Not here:
Medusa's own, independent heads (medusa_heads.py), the file (heads_file.py), trees of guesses (medusa/trees/).
The cell predicts the model's hidden state after one more token, from the last state and that token's embedding: y <- y
+ W2 SiLU(W1 [y, s E(token)] + b). It starts at the model's own last hidden state h, or, for a file that reads the aux
hidden states t1, t2, ... of inner layers, at h + W3 [t1 / rms(t1), t2 / rms(t2), ...]. The model's own output rows turn
y into logits. Head k is the k-th application, on the path guessed by the heads before it: this is Hydra's idea (arXiv
2402.05109) with ReDrafter's shared cell (arXiv 2403.09919).
Shapes: B sequences, M paths of each, H hidden size, I width of what the heads read (H, then all aux hidden states), D
tokens the heads know, R guesses per list, K heads, L lists of guesses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.config import Paths
from medusa_dist.medusa.heads.heads_file import HeadsDescription, HeadsFile
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.trees.candidates import NOWHERE
from medusa_dist.medusa.trees.draft import guess
from medusa_dist.ops.linear import Linear

FOLLOWED = (3, 2, 1)  # guesses per sequence that are extended at depth 1, 2, ...; beyond: 1
LEAST = 0.08  # confidence of a path below which extending it costs more than it can gain


class SequentialHeads(nn.Module):
    """The cell of one file. Drafts never change the output, so it computes in whatever dtype is fast."""

    def __init__(self, file: HeadsFile, output_rows: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """output_rows: [D, H] lm_head rows of the tokens the heads know."""
        super().__init__()
        self.description = file.description
        self.num_heads = self.description.num_heads
        self.device, self.dtype = device, dtype
        self.token_ids = file.draft_vocab.to(device) if file.draft_vocab is not None else None
        tensors = {name: t.to(device=device, dtype=dtype) for name, t in file.tensors.items() if name != "draft_vocab"}
        self._up = Linear(tensors["cell.up.weight"], tensors["cell.up.bias"], prepack=True)
        self._down = Linear(tensors["cell.down.weight"], None, prepack=True)
        self._taps = Linear(tensors["taps.weight"], None, prepack=True) if self.description.aux_layers else None
        self._output = Linear(output_rows.to(device=device, dtype=dtype), None, prepack=True)

    @property
    def needs_embedding(self) -> bool:
        """Whether input embeddings are part of the input: always."""
        return True

    def start(self, read: Tensor) -> Tensor:
        """Rows that the heads read [N, I] -> the initial states of the cell [N, H]."""
        if self._taps is None:
            return read
        hidden, tapped = split_aux_states(self.description, read)
        started: Tensor = hidden.to(self.dtype) + self._taps(tapped.to(self.dtype))
        return started

    def step(self, states: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """states, embeddings: [N, H] -> the next states [N, H], and the next token's logits [N, D] float32."""
        scaled = embeddings.to(self.dtype) * self.description.embedding_scale
        states = states.to(self.dtype)
        states = states + self._down(F.silu(self._up(torch.cat([states, scaled], dim=-1))))
        logits: Tensor = self._output(states).float() * self.description.logit_scale
        cap = self.description.logit_softcap
        return states, logits if cap is None else torch.tanh(logits / cap) * cap


def split_aux_states(about: HeadsDescription, read: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, I] -> the last hidden states [N, H], and the concatenated aux hidden states in float32, each normalised
    to a root mean square of 1: scales differ by orders of magnitude between layers and between tokens."""
    hidden, tapped = read[:, : about.base.hidden_size], read[:, about.base.hidden_size :]
    each = tapped.float().reshape(-1, len(about.aux_layers), about.tap_width)
    return hidden, F.rms_norm(each, (about.tap_width,), eps=1e-6).flatten(1)


def build_heads(
    file: HeadsFile, output_rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> MedusaHeads | SequentialHeads:
    """The module for a file's form. output_rows: [D, H] lm_head rows of its tokens, for files with shared ones."""
    if file.description.form != "sequential":
        return MedusaHeads(file, output_rows, dtype, device)
    assert output_rows is not None, "shared output rows must be given"
    return SequentialHeads(file, output_rows, dtype, device)


def drafting_dtype(stored: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of heads stored as `stored`, for a model of `dtype`. A CPU with fast bfloat16 products is 3 times
    faster in bfloat16, and the output does not depend on the precision of drafts."""
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and stored == "bfloat16" else dtype


@dataclass(frozen=True)
class Lists:
    """Guesses of B sequences as L lists each, laid out like tree.Candidates: all [B, L, R].

    columns: of the draft vocabulary.
    """

    columns: Tensor
    confidences: Tensor
    follows: Tensor


class Growth:
    """Which guesses are extended: the inner paths of a static tree, or the most likely paths at each depth."""

    def __init__(
        self,
        num_heads: int,
        num_guesses: int,
        static: Paths | None = None,
        least: float = LEAST,
        followed: Sequence[int] = FOLLOWED,
    ) -> None:
        """static: the tree's paths of guess indices; None: `followed` decides, how many guesses are extended at depth
        1, 2, ...; beyond, as many as at the last. least: confidence to extend a path."""
        self._least = least
        self._fixed: list[list[int]] | None = None
        self.counts: list[int] = []  # number of guesses extended at each depth
        if static is None:
            for depth in range(num_heads - 1):
                count = followed[min(depth, len(followed) - 1)]
                self.counts.append(min(count, (self.counts[-1] if self.counts else 1) * num_guesses))
            return
        inner = sorted({path[:-1] for path in static if len(path) > 1}, key=lambda path: (len(path), path))
        layers: list[list[tuple[int, ...]]] = [[()]]
        self._fixed = []
        for depth in range(1, num_heads):
            layer = [path for path in inner if len(path) == depth]
            self._fixed.append([layers[-1].index(path[:-1]) * num_guesses + path[-1] for path in layer])
            layers.append(layer)
        self.counts = [len(places) for places in self._fixed]

    def goes_on(self, depth: int, values: Tensor) -> bool:
        """Whether to draft after guesses of these values at this depth; a static tree must be drafted completely."""
        if not self.counts[depth]:
            return False
        # On a GPU one more round is cheaper than waiting for the value.
        return self._fixed is not None or values.device.type != "cpu" or float(values.max()) >= self._least

    def pick(self, depth: int, values: Tensor) -> Tensor:
        """values: [B, M * R] of all guesses at this depth (0 is the first) -> [B, count] indices of those to extend."""
        if self._fixed is None:
            return values.topk(self.counts[depth], dim=-1).indices
        picked = torch.tensor(self._fixed[depth], dtype=torch.int64, device=values.device)
        return picked.expand(values.shape[0], -1)


def draft_paths(
    heads: SequentialHeads,
    read: Tensor,
    first: Tensor,
    embed: Callable[[Tensor], Tensor],
    chance: tuple[Tensor, Tensor | None],
    growth: Growth,
) -> Lists:
    """Draft head by head.

    read [B, I]: of the rows after which they draft. first: embedding of the token just emitted, [B, H]. embed: columns
    of the draft vocabulary [N] -> their embeddings [N, H]. chance: as for guess(), temperatures [B], and noise [B, K,
    D] or None.
    """
    temperatures, noise = chance
    size = read.shape[0]
    states, embeddings = heads.start(read), first
    values = read.new_ones(size, 1, 1, dtype=torch.float32)  # of the paths: [B, M, 1]
    made: list[tuple[Tensor, Tensor, Tensor]] = []
    num_lists = 1
    for depth in range(heads.num_heads):
        states, logits = heads.step(states, embeddings)
        logits = logits.view(size, -1, logits.shape[-1])
        columns, confidences = guess(logits, temperatures, None if noise is None else noise[:, depth, None])
        follows = torch.full_like(columns, NOWHERE)
        made.append((columns, confidences, follows))
        values = values * confidences
        if depth + 1 == heads.num_heads or not growth.goes_on(depth, values):
            break
        picked = growth.pick(depth, values.flatten(1))  # [B, count]
        new_lists = torch.arange(num_lists, num_lists + picked.shape[1], device=picked.device)
        follows.view(size, -1).scatter_(1, picked, new_lists.expand_as(picked))
        num_lists += picked.shape[1]
        values = values.flatten(1).gather(1, picked)[:, :, None]
        owners = picked // columns.shape[-1] + torch.arange(size, device=picked.device)[:, None] * columns.shape[1]
        states = states[owners.flatten()]
        embeddings = embed(columns.flatten(1).gather(1, picked).flatten())
    return Lists(*(torch.cat(parts, dim=1) for parts in zip(*made, strict=True)))
