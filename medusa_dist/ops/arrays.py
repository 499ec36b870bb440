"""Names of the host arrays that travel between the parts: numpy, with their dtype."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
