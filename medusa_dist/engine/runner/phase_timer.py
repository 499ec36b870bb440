"""PhaseTimer: wall-clock time of each phase of a step.

Owns the timer. Not here: which phases there are (engine/engine.py, broadcast.py and worker.py name theirs), how they
are shown (serve/metrics.py, bench/report.py).
"""

import time

import torch


class PhaseTimer:
    """Seconds by phase since creation. Laps follow each other without gaps, so their sum is the whole step.

    GPU kernels run asynchronously, so their time counts for the phase in which the host first waits for a result;
    `wait_for` changes that.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._device: torch.device | None = None
        self._last = 0.0

    def wait_for(self, device: torch.device) -> None:
        """From now on, synchronize with the device before each reading: exact phases, slower steps."""
        self._device = device if device.type == "cuda" else None

    def start(self) -> None:
        """Start timing; the time before is not counted."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap (or start) to this phase."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
