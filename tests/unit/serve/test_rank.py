"""What a rank exports by itself."""

from types import SimpleNamespace
from typing import Any

import pytest

from medusa_dist.serve import rank


class Over(Exception):
    """Ends the endless loop."""


def test_time_in_collectives_is_exported_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[float, dict[str, str]]] = []
    made: list[tuple[str, Any]] = []

    class Counter:
        def __init__(self, name: str, *, description: str, tag_keys: tuple[str, ...]) -> None:
            made.append((name, tag_keys))

        def inc(self, amount: float, tags: dict[str, str]) -> None:
            counted.append((amount, tags))

    process = SimpleNamespace(collective_seconds=5.0)  # of the start, which does not count
    later = iter([5.5, 5.5, 7.5])

    def sleep(_: float) -> None:
        process.collective_seconds = next(later, None)
        if process.collective_seconds is None:
            raise Over

    monkeypatch.setattr(rank, "Counter", Counter)
    monkeypatch.setattr(rank, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Over):
        rank._report(SimpleNamespace(name="m"), 3, process)
    assert counted == [(0.5, {"model": "m", "rank": "3"}), (2.0, {"model": "m", "rank": "3"})]
    assert made == [("medusa_dist_rank_collective_seconds_total", ("model", "rank"))]
