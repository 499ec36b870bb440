"""Sequential heads: one cell, applied once per draft token, sees the tokens drafted before.

Owns the forward pass of the form "sequential", and which module a file needs. Not here: Medusa's own, independent heads
(medusa_heads.py), the file (heads_file.py), which guesses are extended (medusa/trees/levels.py).
The cell predicts the model's hidden state after one more token, from the last state and that token's embedding: y <- y
+ W2 SiLU(W1 [y, s E(token)] + b). It starts at the model's own last hidden state h, or, for a file that reads the aux
hidden states t1, t2, ... of inner layers, at h + W3 [t1 / rms(t1), t2 / rms(t2), ...]; for a file with a prefix layer,
at that layer's output (prefix_layer.py), and then both the cell and the output rows read y / rms(y), the latter times a
weight. The model's own output rows turn
y into logits. Head k is the k-th application, on the path guessed by the heads before it: this is Hydra's idea (arXiv
2402.05109) with ReDrafter's shared cell (arXiv 2403.09919).
Shapes: B sequences, M paths of each, H hidden size, I width of what the heads read (H, then all aux hidden states), D
tokens the heads know, K heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.medusa.heads.description import HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.medusa_heads import MedusaHeads
from medusa_dist.medusa.trees.levels import Growth, Levels, Lists
from medusa_dist.ops.dtypes import has_fast_bfloat16
from medusa_dist.ops.linear import Linear

EPS = 1e-6  # of all norms of the heads


class SequentialHeads(nn.Module):
    """The cell of one file. Drafts never change the output, so it computes in whatever dtype is fast."""

    def __init__(self, file: HeadsFile, output_rows: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        """output_rows: [D, H] lm_head rows of the tokens the heads know."""
        super().__init__()
        self.description = file.description
        self.num_heads = self.description.num_heads
        self.device, self.dtype = device, dtype
        self.token_ids = file.draft_vocab.to(device) if file.draft_vocab is not None else None
        tensors = {
            name: t.to(device=device, dtype=dtype)
            for name, t in file.tensors.items()
            if name.startswith(("cell.", "taps."))
        }
        self._up = Linear(tensors["cell.up.weight"], tensors["cell.up.bias"], prepack=True)
        self._down = Linear(tensors["cell.down.weight"], None, prepack=True)
        self._taps = Linear(tensors["taps.weight"], None, prepack=True) if "taps.weight" in tensors else None
        self._norm = tensors.get("cell.norm")
        self._output = Linear(output_rows.to(device=device, dtype=dtype), None, prepack=True)

    @property
    def needs_embedding(self) -> bool:
        """Whether input embeddings are part of the input: always."""
        return True

    def start(self, read: Tensor) -> Tensor:
        """Rows that the heads read [N, I], or the prefix layer's output [N, H] -> the initial states of the cell [N,
        H]."""
        if self._taps is None:
            return read
        hidden, tapped = split_aux_states(self.description, read)
        started: Tensor = hidden.to(self.dtype) + self._taps(tapped.to(self.dtype))
        return started

    def step(self, states: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """states, embeddings: [N, H] -> the next states [N, H], and the next token's logits [N, D] float32."""
        scaled = embeddings.to(self.dtype) * self.description.embedding_scale
        states = states.to(self.dtype)
        seen = states if self._norm is None else _rms_norm(states)
        states = states + self._down(F.silu(self._up(torch.cat([seen, scaled], dim=-1))))
        told = states if self._norm is None else _rms_norm(states) * self._norm
        logits: Tensor = self._output(told).float() * self.description.logit_scale
        cap = self.description.logit_softcap
        return states, logits if cap is None else torch.tanh(logits / cap) * cap


def _rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


def normalised(about: HeadsDescription, read: Tensor) -> Tensor:
    """Rows [N, I] -> the same in float32, the last hidden state and each aux hidden state with a root mean square of
    1."""
    hidden = read[:, : about.base.hidden_size].float()
    first = F.rms_norm(hidden, hidden.shape[-1:], eps=EPS)
    return torch.cat([first, split_aux_states(about, read)[1]], dim=-1) if about.aux_layers else first


def split_aux_states(about: HeadsDescription, read: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, I] -> the last hidden states [N, H], and the concatenated aux hidden states in float32, each normalised
    to a root mean square of 1: scales differ by orders of magnitude between layers and between tokens."""
    hidden, tapped = read[:, : about.base.hidden_size], read[:, about.base.hidden_size :]
    each = tapped.float().reshape(-1, len(about.aux_layers), about.tap_width)
    return hidden, F.rms_norm(each, (about.tap_width,), eps=EPS).flatten(1)


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
    is_fast = device.type == "cpu" and has_fast_bfloat16(device)
    return torch.bfloat16 if is_fast and stored == "bfloat16" else dtype


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
    levels = Levels(growth, heads.num_heads, chance)
    states, embeddings = heads.start(read), first
    while True:
        states, logits = heads.step(states, embeddings)
        extended = levels.add(logits)
        if extended is None:
            return levels.lists()
        states = states[extended.rows(len(states) // len(read))]
        embeddings = embed(extended.columns.flatten())
