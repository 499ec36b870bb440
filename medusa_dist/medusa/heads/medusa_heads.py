"""Medusa heads: from the last hidden state (and the last token) to each head's logits.

Owns the forward pass of Medusa's heads. Not here: the file (heads_file.py), which guesses become a tree
(medusa/trees/draft.py, medusa/trees/tree.py).
A head is a residual block x + SiLU(W x + b) with shared or own output rows (Cai et al., "Medusa", arXiv 2401.10774).
The form "hidden+embedding" also reads the token just emitted, which is known when drafting: its residual still starts
from the hidden state, y = h + SiLU(W [h, s E(token)] + b).
Shapes: B sequences, K heads, H hidden size, D tokens the heads know.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.ops.linear import Linear


class MedusaHeads(nn.Module):
    """All heads of one file. The first blocks of all heads read the same input and run as one matrix product."""

    def __init__(self, file: HeadsFile, output_rows: Tensor | None, dtype: torch.dtype, device: torch.device) -> None:
        """output_rows: [D, H] lm_head rows of the tokens the heads know, for files that share the base model's."""
        super().__init__()
        description = file.description
        self.num_heads = description.num_heads
        self.description = description
        self.device, self.dtype = device, dtype
        draft_vocab = file.draft_vocab
        self.token_ids = draft_vocab.to(device) if draft_vocab is not None else None

        def weight(name: str) -> Tensor:
            return file.tensors[name].to(device=device, dtype=dtype)

        def bias(name: str) -> Tensor | None:
            return weight(name) if description.bias else None

        heads = range(self.num_heads)
        firsts = [bias(f"heads.{k}.blocks.0.bias") for k in heads]
        self.first = Linear(
            torch.cat([weight(f"heads.{k}.blocks.0.weight") for k in heads]),
            torch.cat([b for b in firsts if b is not None]) if description.bias else None,
            prepack=True,
        )
        self.later = nn.ModuleList(
            nn.ModuleList(
                Linear(weight(f"heads.{k}.blocks.{block}.weight"), bias(f"heads.{k}.blocks.{block}.bias"), prepack=True)
                for block in range(1, description.num_blocks)
            )
            for k in heads
        )
        if description.lm_head == "own":
            outputs = [weight(f"heads.{k}.lm_head.weight") for k in heads]
        else:
            assert output_rows is not None, "shared output rows must be given"
            outputs = [output_rows.to(device=device, dtype=dtype)]
        self.outputs = nn.ModuleList(Linear(rows, None, prepack=True) for rows in outputs)

    @property
    def needs_embedding(self) -> bool:
        """Whether the input embedding of the token just emitted is part of the input."""
        return self.description.form == "hidden+embedding"

    def forward(self, hidden: Tensor, embedding: Tensor | None) -> Tensor:
        """hidden, embedding: [B, H] -> logits [B, K, D] float32."""
        hidden = hidden.to(self.dtype)
        x = hidden
        if self.needs_embedding:
            assert embedding is not None
            x = torch.cat([hidden, embedding.to(self.dtype) * self.description.embedding_scale], dim=-1)
        first = F.silu(self.first(x)).view(hidden.shape[0], self.num_heads, -1)
        states = hidden[:, None] + first  # [B, K, H]
        if self.description.num_blocks > 1:
            states = torch.stack([self._later(k, states[:, k]) for k in range(self.num_heads)], dim=1)
        if len(self.outputs) == 1:
            logits = self.outputs[0](states.flatten(0, 1)).view(hidden.shape[0], self.num_heads, -1).float()
        else:
            logits = torch.stack([self.outputs[k](states[:, k]) for k in range(self.num_heads)], dim=1).float()
        logits = logits * self.description.logit_scale if self.description.logit_scale != 1.0 else logits
        cap = self.description.logit_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _later(self, head: int, state: Tensor) -> Tensor:
        blocks = self.later[head]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            state = state + F.silu(block(state))
        return state
