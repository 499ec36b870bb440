"""What compiled loops take of a tensor: its address, or a numpy array of it; for bfloat16, its bits as int16.

Owns the conversion. Not here: the loops, and what they make of it (loop_parts.py).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medusa_dist.ops.arrays import Array

# By dtype: what stands for one element in a loop.
ELEMENT: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.bfloat16: np.int16(0)}
KERNEL_DTYPES = frozenset(ELEMENT)


def bits(x: Tensor) -> Array:
    """A float32 tensor as it is, a bfloat16 one as its bits in int16. No copy."""
    found: Array = x.numpy() if x.dtype is torch.float32 else x.view(torch.int16).numpy()
    return found
