"""Type names of the numpy arrays that host code exchanges.

Owns the names. Not here: tensors.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
