"""EAGLE-3 heads: one decoder layer over the fused hidden states of three inner layers, with keys and values of its own.

Owns the forward pass. Not here: the file (checkpoint.py), which guesses are extended (expansion.py), where keys and
values are kept (engine/drafters/context_cache.py).
The network (Li et al., "EAGLE-3", arXiv 2503.01840) reads pairs: a token's embedding, and the state before it. For a
known token, that state is the fused outputs of tapped layers at the token before; for a drafted token, it is the
layer's own output at its parent. Both halves are normalised and read side by side, so q, k and v have inputs twice as
wide.
Shapes: N rows, B sequences, H the heads' width, W the base's, T tapped layers, D known tokens, L keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.medusa.eagle3.checkpoint import LAYER, Eagle3File
from medusa_dist.medusa.eagle3.config import Eagle3Config
from medusa_dist.medusa.eagle3.rotary import rotate
from medusa_dist.ops.attention.kv_cache import block_bytes
from medusa_dist.ops.linear import Linear


def kv_block_bytes(config: Eagle3Config, dtype: torch.dtype) -> int:
    """Bytes of a KV block of the layer, and of its gathered copy while drafting."""
    return 2 * block_bytes(1, config.num_kv_heads, config.head_dim, dtype)


class Eagle3(nn.Module):
    """The layer of one file. Drafts never change the output, so it computes in whatever dtype is fast."""

    def __init__(
        self,
        file: Eagle3File,
        output_rows: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """output_rows: [D, H] of the base's lm_head, for a file that has none."""
        super().__init__()
        self.config = config = file.config
        self.num_levels = file.num_levels
        self.device, self.dtype = device, dtype
        self.token_ids = None if file.draft_vocab is None else file.draft_vocab.to(device)

        def get(name: str) -> Tensor | None:
            tensor = file.tensors.get(name)
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        def linear(*names: str) -> Linear:
            """Several layers over the same input, as one."""
            weights = [file.tensors[f"{name}.weight"].to(device=device, dtype=dtype) for name in names]
            biases = [get(f"{name}.bias") for name in names]
            some = [
                torch.zeros(len(weight), device=device, dtype=dtype) if bias is None else bias
                for weight, bias in zip(weights, biases, strict=True)
            ]
            bias = torch.cat(some) if any(one is not None for one in biases) else None
            return Linear(torch.cat(weights), bias, prepack=True)

        self._norms = {
            name.removesuffix(".weight").removeprefix(LAYER): tensor.to(device=device, dtype=dtype)
            for name, tensor in file.tensors.items()
            if tensor.dim() == 1 and name.endswith(".weight")
        }
        self._fuse = linear("fc")
        self._query = linear(f"{LAYER}self_attn.q_proj")
        self._key_value = linear(f"{LAYER}self_attn.k_proj", f"{LAYER}self_attn.v_proj")
        self._attended = linear(f"{LAYER}self_attn.o_proj")
        self._gate_up = linear(f"{LAYER}mlp.gate_proj", f"{LAYER}mlp.up_proj")
        self._down = linear(f"{LAYER}mlp.down_proj")
        rows = file.tensors.get("lm_head.weight", output_rows)
        assert rows is not None, "output rows must be given"
        self._output = Linear(rows.to(device=device, dtype=dtype), None, prepack=True)
        self._frequencies, self._factor = config.rotary.frequencies(config.head_dim)
        self._frequencies = self._frequencies.to(device)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.config.eps).to(x.dtype) * self._norms[name]

    def fuse(self, tapped: Tensor) -> Tensor:
        """Outputs of the tapped layers side by side [N, T W] -> fused states [N, H]."""
        x = tapped.to(self.dtype)
        if self.config.norm_before_fc:
            x = self._norm("input_norm", x)
        if self.config.fc_norm:
            parts = enumerate(x.chunk(self.config.num_taps, dim=-1))
            x = torch.cat([self._norm(f"fc_norm.{tap}", part) for tap, part in parts], dim=-1)
        fused: Tensor = self._fuse(x)
        return fused

    def read(self, embeddings: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs [N, H] each -> what q, k and v read [N, 2 H], and the residual [N, H]."""
        states = states.to(self.dtype)
        normed = self._norm("hidden_norm", states)
        embedded = self._norm("input_layernorm", embeddings.to(self.dtype))
        return torch.cat([embedded, normed], dim=-1), normed if self.config.norm_before_residual else states

    def keys_values(self, pairs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` gave [N, 2 H], positions [N] -> keys and values [N, kv heads, d]."""
        config = self.config
        keys, values = self._key_value(pairs).view(len(pairs), 2, config.num_kv_heads, config.head_dim).unbind(1)
        if config.qk_norm:
            keys = self._norm("self_attn.k_norm", keys)
        return rotate(keys, positions, self._frequencies, self._factor), values

    def queries(self, pairs: Tensor, positions: Tensor) -> Tensor:
        """Likewise -> queries [N, heads, d]."""
        config = self.config
        queries: Tensor = self._query(pairs).view(len(pairs), config.num_heads, config.head_dim)
        if config.qk_norm:
            queries = self._norm("self_attn.q_norm", queries)
        return rotate(queries, positions, self._frequencies, self._factor)

    def finish(self, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of the layer: attended [N, heads * d], residual [N, H] -> the states that the next level reads
        [N, H], and the next token's logits [N, D] float32."""
        x = residual + self._attended(attended)
        gate, up = self._gate_up(self._norm("post_attention_layernorm", x)).chunk(2, dim=-1)
        x = x + self._down(F.silu(gate) * up)
        normed = self._norm("norm", x)
        logits: Tensor = self._output(normed).float() * self.config.logit_scale
        return normed if self.config.norm_output else x, logits
