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

from medusa_dist.medusa.eagle3.rotary import Rotary, rotate
from medusa_dist.medusa.heads.description import HeadsDescription
from medusa_dist.medusa.heads.sequential import EPS, normalised, split_aux_states

_AUX_SHARE = 0.1  # of the usual initial values, for what aux hidden states add


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
    def __init__(self, hidden: int, width: int, norm: float | None = None) -> None:
        """norm: initial weights of the norm before the output rows; None: there is none."""
        super().__init__()
        self.up = nn.Linear(2 * hidden, width)
        self.down = nn.Linear(width, hidden, bias=False)
        nn.init.zeros_(self.down.weight)
        self.norm = None if norm is None else nn.Parameter(torch.full((hidden,), norm))


class _Prefix(nn.Module):
    """The prefix layer (prefix_layer.py), over whole texts laid end to end."""

    def __init__(self, about: HeadsDescription) -> None:
        super().__init__()
        assert about.prefix is not None
        self.shape, hidden = about.prefix, about.base.hidden_size
        shape = self.shape
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.fuse = nn.Linear(about.input_width, hidden, bias=False)
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.q_proj = nn.Linear(hidden, queries, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, hidden, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        self.gate_proj = nn.Linear(hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, hidden, bias=False)
        with torch.no_grad():  # starts as the model's last hidden state, with a little of the aux hidden states
            self.fuse.weight.mul_(_AUX_SHARE)
            self.fuse.weight[:, :hidden] += torch.eye(hidden)
        nn.init.zeros_(self.o_proj.weight)
        nn.init.zeros_(self.down_proj.weight)

    def forward(self, read: Tensor, lengths: list[int]) -> Tensor:
        """read: normalised rows [N, I] of texts of these lengths -> [N, H]."""
        shape, x = self.shape, self.fuse(read)
        seen = self._norm(x, self.attention_norm)
        frequencies, _ = Rotary(shape.rope_theta).frequencies(shape.head_dim)
        positions = torch.cat([torch.arange(length, device=x.device) for length in lengths])

        def heads(layer: nn.Module, turned: bool) -> Tensor:
            each: Tensor = layer(seen).view(len(x), -1, shape.head_dim)
            return rotate(each, positions, frequencies.to(x.device), 1.0) if turned else each

        parts = heads(self.q_proj, True), heads(self.k_proj, True), heads(self.v_proj, False)
        attended = []
        for one in zip(*(torch.split(part, lengths) for part in parts), strict=True):
            q, k, v = (part.transpose(0, 1)[None] for part in one)  # [1, heads, text, d]
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            attended.append(out[0].transpose(0, 1))
        x = x + self.o_proj(torch.cat(attended).flatten(1))
        seen = self._norm(x, self.mlp_norm)
        made: Tensor = x + self.down_proj(F.silu(self.gate_proj(seen)) * self.up_proj(seen))
        return made

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.shape.eps) * weight


class TrainableHeads(nn.Module):
    """output_rows: [D, H] lm_head rows of the tokens the heads know. embedding: the base model's input embedding [V,
    H]. hidden_rms: root mean square of the model's last hidden states, for heads with a prefix layer.

    Both are frozen and not part of the state_dict.
    """

    rows: Tensor
    embedding: Tensor

    def __init__(
        self, about: HeadsDescription, output_rows: Tensor, embedding: Tensor, hidden_rms: float = 1.0
    ) -> None:
        super().__init__()
        self.about = about
        self.register_buffer("rows", output_rows, persistent=False)
        self.register_buffer("embedding", embedding, persistent=False)
        if about.width is not None:
            self.cell = _Cell(about.base.hidden_size, about.width, None if about.prefix is None else hidden_rms)
            if about.prefix is not None:
                self.prefix = _Prefix(about)
            elif about.aux_layers:
                self.taps = nn.Linear(len(about.aux_layers) * about.tap_width, about.base.hidden_size, bias=False)
                nn.init.zeros_(self.taps.weight)  # starts as if there were no aux hidden states
        else:
            self.heads = nn.ModuleList(_Head(about, len(output_rows)) for _ in range(about.num_heads))
            for head in self.heads:
                assert isinstance(head, _Head)
                if head.lm_head is not None:
                    with torch.no_grad():
                        head.lm_head.weight.copy_(output_rows)

    def forward(
        self, hidden: Tensor, tokens: Tensor, texts: tuple[list[int], Tensor] | None = None
    ) -> Iterator[Tensor]:
        """hidden: [N, I]. tokens: [N, K], the one just emitted and the true ones after -> logits [N, D] per head.

        texts: required by a prefix layer: lengths of the whole texts that the rows are, and [M] the rows to predict
        after; hidden is then [N, I], tokens [M, K], and the logits are [M, D].
        """
        if self.about.prefix is not None:
            assert texts is not None, "a prefix layer needs whole texts"
            assert self.cell.norm is not None
            states = self.prefix(normalised(self.about, hidden), texts[0])[texts[1]]
            for k in range(self.about.num_heads):
                seen = torch.cat([_rms_norm(states), self._embed(tokens[:, k], states)], dim=-1)
                states = states + self.cell.down(F.silu(self.cell.up(seen)))
                told = _rms_norm(states) * self.cell.norm
                yield F.linear(told.to(self.rows.dtype), self.rows)
            return
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


def _rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPS)
