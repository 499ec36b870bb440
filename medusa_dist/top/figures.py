"""Figures: what `top` shows of one model, from the readings of the last half minute.

Owns rates, shares and percentiles. Pure. Not here: where readings come from (reading.py), the screen (screen.py).
Ray exports a process's metrics only every few seconds, so a rate is taken between two readings at which they changed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from medusa_dist.top.reading import Reading

WINDOW_S = 30.0
_MARKERS = ("steps_total", "tokens_total", "requests_ended_total")  # one of them changes while anything happens


class Quantiles(NamedTuple):
    """Seconds; None without a sample in the window."""

    p50: float | None
    p95: float | None


_UNKNOWN = Quantiles(None, None)


@dataclass(frozen=True)
class Figures:
    """One model, now. Rates are per second; None: not known yet. by_state: requests. heads[k]: of depth k + 1:
    (verified, accepted) draft tokens per sequence and step. phases_ms: per step. generations: restarts of each group.
    """

    model: str
    by_state: dict[str, int]
    ended: dict[str, float] = field(default_factory=dict)  # per second, by reason
    tokens: float | None = None
    prompt_tokens: float | None = None
    tokens_per_step: float | None = None
    steps: float | None = None
    heads: tuple[tuple[float, float], ...] = ()
    phases_ms: dict[str, float] = field(default_factory=dict)
    kv_used: float = 0.0
    replicas_up: int = 0
    replicas: int = 0
    generations: tuple[int, ...] = ()
    failures: int = 0
    first_token: Quantiles = _UNKNOWN
    token: Quantiles = _UNKNOWN
    batches: dict[str, int] = field(default_factory=dict)


class ReadingHistory:
    """The readings of the last WINDOW_S that brought something new, and the latest one."""

    def __init__(self) -> None:
        self._changed: deque[Reading] = deque()
        self._latest: Reading | None = None
        self._begin: float | None = None

    def add(self, reading: Reading) -> None:
        """The next reading."""
        self._begin = reading.at if self._begin is None else self._begin
        if not self._changed or _marks(reading) != _marks(self._changed[-1]):
            self._changed.append(reading)
        while len(self._changed) > 2 and self._changed[1].at < reading.at - WINDOW_S:
            self._changed.popleft()
        self._latest = reading

    def figures(self) -> list[Figures]:
        """One for each model, by name."""
        if self._latest is None:
            return []
        models = sorted({labels["model"] for labels, _ in self._latest.all("requests") if "model" in labels})
        return [self._of(model, self._latest) for model in models]

    def _of(self, model: str, now: Reading) -> Figures:
        up = now.sum("group_up", by="replica", model=model)
        shown = Figures(
            model=model,
            by_state={
                "running": round(now.sum("running_sequences", model=model)[""]),
                "waiting": round(now.sum("waiting_sequences", model=model)[""]),
                "in all": round(now.sum("requests", model=model)[""]),
            },
            kv_used=max(now.max("kv_used_fraction", "model", model=model).values(), default=0.0),
            replicas_up=sum(value > 0 for value in up.values()),
            replicas=len(up),
            generations=tuple(int(v) for _, v in sorted(now.max("generation", "replica", model=model).items())),
            failures=round(now.sum("group_failures_total", model=model)[""]),
            batches={
                status: round(count) for status, count in now.sum("batches", by="status", model=model).items() if count
            },
        )
        if len(self._changed) < 2:
            known = self._begin is not None and now.at - self._begin > WINDOW_S
            return _idle(shown) if known else shown
        if self._changed[-1].at < now.at - WINDOW_S:
            return _idle(shown)
        return _with_rates(shown, self._changed[0], self._changed[-1])


def _marks(reading: Reading) -> list[float]:
    return [sum(value for _, value in reading.all(name)) for name in _MARKERS]


def _idle(shown: Figures) -> Figures:
    """Nothing happened for WINDOW_S."""
    return Figures(**{**vars(shown), "tokens": 0.0, "prompt_tokens": 0.0, "steps": 0.0})


def _with_rates(shown: Figures, old: Reading, new: Reading) -> Figures:
    seconds = new.at - old.at

    def grown(name: str, by: str = "") -> dict[str, float]:
        return _growth(old, new, name, by, shown.model)

    steps, sequence_steps = grown("steps_total").get("", 0.0), grown("sequence_steps_total").get("", 0.0)
    tokens = grown("tokens_total").get("", 0.0)
    drafted, accepted = grown("drafted_tokens_total", "head"), grown("accepted_tokens_total", "head")
    depths = sorted((head for head in drafted if head.isdigit() and drafted[head]), key=int)
    per_step = 1.0 / sequence_steps if sequence_steps else 0.0
    return Figures(
        **{
            **vars(shown),
            "ended": {reason: n / seconds for reason, n in grown("requests_ended_total", "reason").items() if n},
            "tokens": tokens / seconds,
            "prompt_tokens": grown("prompt_tokens_total").get("", 0.0) / seconds,
            "tokens_per_step": tokens * per_step if sequence_steps else None,
            "steps": steps / seconds,
            "heads": tuple((drafted[head] * per_step, accepted.get(head, 0.0) * per_step) for head in depths),
            "phases_ms": {phase: 1000 * s / steps for phase, s in grown("phase_seconds_total", "phase").items()}
            if steps
            else {},
            "first_token": _quantiles(grown("time_to_first_token_seconds_bucket", "le")),
            "token": _quantiles(grown("time_per_token_seconds_bucket", "le")),
        }
    )


def _growth(old: Reading, new: Reading, name: str, by: str, model: str) -> dict[str, float]:
    """How much a counter grew, by a label. One that is smaller than before has begun anew."""
    before = {tuple(sorted(labels.items())): value for labels, value in old.all(name)}
    found: dict[str, float] = {}
    for labels, value in new.all(name):
        if labels.get("model") == model:
            last = before.get(tuple(sorted(labels.items())), 0.0)
            grown = value - last if value >= last else value
            found[labels.get(by, "")] = found.get(labels.get(by, ""), 0.0) + grown
    return found


def _quantiles(buckets: dict[str, float]) -> Quantiles:
    """By linear interpolation in a bucket, as Prometheus' histogram_quantile does. buckets: upper limit -> count."""
    counts = sorted((float(limit), count) for limit, count in buckets.items())
    return Quantiles(_quantile(counts, 0.5), _quantile(counts, 0.95))


def _quantile(counts: Sequence[tuple[float, float]], share: float) -> float | None:
    if not counts or not counts[-1][1]:
        return None
    rank = share * counts[-1][1]
    below_limit, below = 0.0, 0.0
    for limit, count in counts:
        if count >= rank:
            if limit == float("inf") or count == below:
                return below_limit
            return below_limit + (limit - below_limit) * (rank - below) / (count - below)
        below_limit, below = limit, count
    return below_limit
