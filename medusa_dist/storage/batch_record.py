"""BatchRecord: one batch, its states and their times. Pure: a change makes a new record.

Owns OpenAI's state machine and batch object. Not here: where records are kept (batch_store.py), what runs a batch
(api/batches/).

    validating -> in_progress -> finalizing -> completed | expired
    validating | in_progress | finalizing -> failed
    validating | in_progress -> cancelling -> cancelled
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Status = Literal["validating", "in_progress", "finalizing", "cancelling", "completed", "expired", "cancelled", "failed"]
NEXT: dict[Status, tuple[Status, ...]] = {
    "validating": ("in_progress", "cancelling", "failed"),
    "in_progress": ("finalizing", "cancelling", "failed"),
    "finalizing": ("completed", "expired", "failed"),
    "cancelling": ("cancelled", "failed"),
    "completed": (),
    "expired": (),
    "cancelled": (),
    "failed": (),
}
OVER: frozenset[Status] = frozenset(status for status, after in NEXT.items() if not after)
STAMPED: tuple[Status, ...] = tuple(status for status in NEXT if status != "validating")


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a batch failed. line: number in the input file, from 1; None: not about a line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch. Times are unix seconds.

    stamps: when each status began. completed, failed: lines with an entry in the output file, or in the error file.
    output_id, error_id: of the files, chosen before they are written, so that a second attempt writes the same ones;
    has_output, has_errors: whether they exist. expired: time ran out, so that finalizing ends in `expired`.
    """

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None
    status: Status = "validating"
    stamps: dict[Status, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: tuple[LineError, ...] = ()
    output_id: str | None = None
    error_id: str | None = None
    has_output: bool = False
    has_errors: bool = False
    expired: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in OVER

    def to(self, status: Status, now: float, **changes: Any) -> "BatchRecord":
        """The record in its next status. Raises ValueError for one that cannot follow."""
        if status not in NEXT[self.status]:
            raise ValueError(f"a batch in status {self.status} cannot become {status}")
        return replace(self, status=status, stamps={**self.stamps, status: int(now)}, **changes)

    def public(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        errors = [asdict(error) for error in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_id if self.has_output else None,
            "error_file_id": self.error_id if self.has_errors else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{status}_at": self.stamps.get(status) for status in STAMPED},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }

    def dumps(self) -> bytes:
        """The record as bytes, for `loads`."""
        return json.dumps(asdict(self)).encode()


def loads(data: bytes) -> BatchRecord:
    """A record of what `dumps` made."""
    given = json.loads(data)
    return BatchRecord(**{**given, "errors": tuple(LineError(**error) for error in given["errors"])})
