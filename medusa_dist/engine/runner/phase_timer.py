"""Where a step's time goes.

Owns the wall clock of a step's phases. Not here: what the phases are (engine.py, ranks.py and worker.py name theirs),
how they are shown (serve/metrics.py, bench/report.py).
"""

import time

import torch


class PhaseTimer:
    """Seconds by phase, since it was made. Laps follow each other without gaps, so their sum is the whole step.

    On a GPU, kernels run behind the host's back, and their time is booked where the host first needs a result;
    `wait_for` changes that.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._device: torch.device | None = None
        self._last = 0.0

    def wait_for(self, device: torch.device) -> None:
        """From now on, let the device finish before each reading: exact phases, slower steps."""
        self._device = device if device.type == "cuda" else None

    def start(self) -> None:
        """Time before this is nobody's."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What passed since the last lap (or start) was this phase."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
