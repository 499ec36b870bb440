"""Output and error file of a batch, made of its journal.

Owns which line goes where, and entries of lines that were not processed. Not here: when that is (run.py).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from medusa_dist.api.batches.validate import batch_lines
from medusa_dist.errors import StorageError
from medusa_dist.storage.batch_lines import NO_RESPONSE, LineAnswer
from medusa_dist.storage.batch_record import BatchRecord
from medusa_dist.storage.store import Store

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed before the batch was cancelled.")
FAILED = ("batch_failed", "This request was not executed before the batch failed.")


def success_or_failure(answer: LineAnswer) -> dict[str, Any]:
    """The output line of a processed line. As OpenAI has it, an HTTP error is in `response`, not in `error`."""
    record = answer.record()
    return record if answer.status == NO_RESPONSE else {**record, "error": None}


def write_outputs(store: Store, batch: BatchRecord) -> BatchRecord:
    """Write both files; returns the batch with their counts. A file without lines is not written.

    A second call writes the same files again. Blocks.
    """
    assert batch.output_id is not None and batch.error_id is not None
    journal = store.batches.journal(batch)

    def finished(is_ok: bool, count: int) -> Iterator[bytes]:
        found = 0
        for line in journal.lines():
            if line.is_ok is is_ok:
                found += 1
                yield line.record + b"\n"
        if found != count:  # another process has ended the batch, and its files are whole
            raise StorageError(f"the journal of {batch.id} changed while its output was written")

    completed = 0
    done: set[int] = set()
    for line in journal.lines():
        done.add(line.number)
        completed += line.is_ok
    failed = len(done) - completed
    left = max(0, batch.total - len(done))

    def with_errors() -> Iterator[bytes]:
        yield from finished(False, failed)
        if left:
            yield from _unprocessed(store, batch, done)

    write, tenant, after_s = store.files.write, batch.tenant, batch.output_expires_after_s
    if completed:
        name = f"{batch.id}_output.jsonl"
        write(tenant, batch.output_id, name, "batch_output", finished(True, completed), after_s)
    if failed + left:
        name = f"{batch.id}_error.jsonl"
        write(tenant, batch.error_id, name, "batch_output", with_errors(), after_s)
    return replace(
        batch, completed=completed, failed=failed + left, has_output=completed > 0, has_errors=failed + left > 0
    )


def _unprocessed(store: Store, batch: BatchRecord, done: set[int]) -> Iterator[bytes]:
    """Entries of the lines that have none in the journal."""
    code, text = CANCELLED if batch.status == "cancelling" else EXPIRED if batch.expired else FAILED
    with store.files.open(batch.tenant, batch.input_file_id) as file:
        for line in batch_lines(file, batch.id):
            if line.number not in done:
                error = {"code": code, "message": text}
                record = {"id": line.id, "custom_id": line.custom_id, "response": None, "error": error}
                yield json.dumps(record, separators=(",", ":")).encode() + b"\n"
