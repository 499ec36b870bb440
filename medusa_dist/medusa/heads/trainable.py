"""Trainable heads: the forms of the head file as plain modules, run with teacher forcing.

Owns their forward pass in training and their initial values. Not here: losses (loss.py), the modules that serve
(medusa_heads.py, sequential.py), against which the tests compare the logits.
The state_dict has the names of a head file's tensors.
Shapes: N positions, K heads, H hidden size, I width of what the heads read (H, then all aux hidden states), D tokens
the heads know.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.medusa.heads.description import HeadsDescription
from medusa_dist.medusa.heads.sequential import split_aux_states


class _Head(nn.Module):
    """One of Medusa's heads: residual blocks, and its own output rows if the file says so."""

    def __init__(self, about: HeadsDescription, known: int) -> None:
        super().__init__()
        hidden = about.base.hidden_size
        doubled = about.form == "hidden+embedding"
        self.blocks = nn.ModuleList(
            nn.Linear(2 * hidden if doubled and block == 0 else hidden, hidden, about.bias)
            for block in range(about.num_blocks)
        )
        for block in self.blocks:
            assert isinstance(block, nn.Linear)
            nn.init.zeros_(block.weight)  # starts as the base model's own guess
            if about.bias:
                nn.init.zeros_(block.bias)
        self.lm_head = nn.Linear(hidden, known, bias=False) if about.lm_head == "own" else None


class _Cell(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(2 * hidden, width)
        self.down = nn.Linear(width, hidden, bias=False)
        nn.init.zeros_(self.down.weight)


class TrainableHeads(nn.Module):
    """output_rows: [D, H] lm_head rows of the tokens the heads know. embedding: the base model's input embedding [V,
    H].

    Both are frozen and not part of the state_dict.
    """

    rows: Tensor
    embedding: Tensor

    def __init__(self, about: HeadsDescription, output_rows: Tensor, embedding: Tensor) -> None:
        super().__init__()
        self.about = about
        self.register_buffer("rows", output_rows, persistent=False)
        self.register_buffer("embedding", embedding, persistent=False)
        if about.width is not None:
            self.cell = _Cell(about.base.hidden_size, about.width)
            if about.aux_layers:
                self.taps = nn.Linear(len(about.aux_layers) * about.tap_width, about.base.hidden_size, bias=False)
                nn.init.zeros_(self.taps.weight)  # starts as if there were no aux hidden states
        else:
            self.heads = nn.ModuleList(_Head(about, len(output_rows)) for _ in range(about.num_heads))
            for head in self.heads:
                assert isinstance(head, _Head)
                if head.lm_head is not None:
                    with torch.no_grad():
                        head.lm_head.weight.copy_(output_rows)

    def forward(self, hidden: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        """hidden: [N, I]. tokens: [N, K], the one just emitted and the true ones after -> logits [N, D] per head."""
        if self.about.width is not None:
            yield from self._sequential(hidden, tokens)
            return
        x = hidden
        if self.about.form == "hidden+embedding":
            x = torch.cat([hidden, self._embed(tokens[:, 0], hidden)], dim=-1)
        for head in self.heads:
            assert isinstance(head, _Head)
            state = hidden + F.silu(head.blocks[0](x))
            for block in head.blocks[1:]:
                state = state + F.silu(block(state))
            yield F.linear(state, self.rows) if head.lm_head is None else head.lm_head(state)

    def _sequential(self, hidden: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        state = hidden
        if self.about.aux_layers:
            last, tapped = split_aux_states(self.about, hidden)
            state = last + self.taps(tapped).to(last.dtype)
        for k in range(self.about.num_heads):
            x = torch.cat([state, self._embed(tokens[:, k], hidden)], dim=-1)
            state = state + self.cell.down(F.silu(self.cell.up(x)))
            yield F.linear(state, self.rows)

    def _embed(self, tokens: Tensor, like: Tensor) -> Tensor:
        return (self.embedding[tokens] * self.about.embedding_scale).to(like.dtype)
