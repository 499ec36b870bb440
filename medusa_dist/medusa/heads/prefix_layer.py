"""PrefixLayer: a decoder layer of the heads' own, through which a sequential cell sees the whole text.

Owns the layer's products. Not here: the cell that goes on from its output (sequential.py), its keys and values and its
attention (engine/drafters/prefix_reader.py).
Medusa's heads see one hidden state. This layer stands on top of the base model, on rank 0 only: it reads the state of
every token, attends to all tokens before as the base's layers do, drafted ones along their tree, and the cell starts
from its output. This is the prefix attention of Hydra++ (arXiv 2402.05109).
Shapes: T rows, I width of what it reads (the last hidden state, then the aux hidden states), H hidden size, d head_dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medusa_dist.medusa.eagle3.rotary import Rotary, rotate
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.sequential import normalised
from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.ops.attention.kv_cache import block_bytes
from medusa_dist.ops.linear import Linear


class PrefixLayer(nn.Module):
    """The layer of one file. Drafts never change the output, so it computes in whatever dtype is fast."""

    def __init__(self, file: HeadsFile, dtype: torch.dtype, device: torch.device) -> None:
        """file: one whose description has `prefix`."""
        super().__init__()
        assert file.description.prefix is not None, "these heads have no prefix layer"
        self.description, self.shape = file.description, file.description.prefix
        self.device, self.dtype = device, dtype

        def get(name: str) -> Tensor:
            return file.tensors[name].to(device=device, dtype=dtype)

        def linear(*names: str) -> Linear:
            """Several layers over the same input, as one."""
            return Linear(torch.cat([get(f"prefix.{name}.weight") for name in names]), None, prepack=True)

        self._attention_norm, self._mlp_norm = get("prefix.attention_norm"), get("prefix.mlp_norm")
        self._fuse = linear("fuse")
        self._qkv = linear("q_proj", "k_proj", "v_proj")
        self._attended = linear("o_proj")
        self._gate_up = linear("gate_proj", "up_proj")
        self._down = linear("down_proj")
        self._frequencies = Rotary(self.shape.rope_theta).frequencies(self.shape.head_dim)[0].to(device)
        self.params = AttentionParams(self.shape.head_dim**-0.5)

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of a block of its keys and values."""
        return block_bytes(1, self.shape.num_kv_heads, self.shape.head_dim, self.dtype)

    def fuse(self, states: Tensor) -> Tensor:
        """Rows of the base model [T, I] -> the layer's input [T, H]."""
        fused: Tensor = self._fuse(normalised(self.description, states).to(self.dtype))
        return fused

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, H], positions [T] -> queries [T, heads, d], keys and values [T, kv heads, d]."""
        shape, rows = self.shape, self._qkv(self._norm(x, self._attention_norm))
        heads = rows.view(len(x), -1, shape.head_dim)
        queries, keys, values = heads.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        turned = rotate(torch.cat([queries, keys], dim=1), positions, self._frequencies, 1.0)
        return turned[:, : shape.num_heads], turned[:, shape.num_heads :], values

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [T, H] and what attention gave [T, heads, d] -> the states that the cell starts from [T, H]."""
        x = x + self._attended(attended.flatten(1))
        gate, up = self._gate_up(self._norm(x, self._mlp_norm)).chunk(2, dim=-1)
        states: Tensor = x + self._down(F.silu(gate) * up)
        return states

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.shape.eps).to(self.dtype) * weight
