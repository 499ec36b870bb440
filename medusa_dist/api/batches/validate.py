"""Checks of an input file before a batch begins.

Owns which files are refused as a whole, with OpenAI's codes. Not here: what a line means
(storage/batch_lines.py), fields of bodies, which the routes check line by line.
"""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from medusa_dist.storage.batch_lines import BatchLine, parse_line, raw_lines
from medusa_dist.storage.batch_record import LineError

MAX_ERRORS = 100


def batch_seed(batch_id: str) -> int:
    """The seed from which lines without one get theirs: the same after a restart."""
    return int.from_bytes(hashlib.blake2b(batch_id.encode(), digest_size=7).digest())


def batch_lines(file: BinaryIO, batch_id: str) -> Iterator[BatchLine]:
    """The lines of an input file."""
    seed = batch_seed(batch_id)
    return (parse_line(raw, seed) for raw in raw_lines(file))


def check_lines(lines: Iterator[BatchLine], endpoint: str, max_lines: int) -> tuple[int, list[LineError]]:
    """The number of lines, and why the file is refused; at most MAX_ERRORS errors, the last one says how many more."""
    seen: dict[bytes, int] = {}  # hashes of custom_ids, so that many lines stay small
    errors: list[LineError] = []
    total = num_errors = 0
    for line in lines:
        total += 1
        if total > max_lines:
            text = f"the file has more than {max_lines} lines, the limit of this service (files.max_batch_lines)"
            return total, [LineError("too_many_tasks", text)]
        error = _error(line, endpoint, seen)
        num_errors += error is not None
        if error is not None and len(errors) < MAX_ERRORS:
            errors.append(error)
    if not total:
        text = "the input file is empty; it must have at least one request"
        return 0, [LineError("empty_file", text)]
    if num_errors > len(errors):
        errors[-1] = LineError("too_many_errors", f"and {num_errors - len(errors) + 1} more errors")
    return total, errors


def _error(line: BatchLine, endpoint: str, seen: dict[bytes, int]) -> LineError | None:
    if line.problem is not None:
        text = line.problem.removeprefix(f"line {line.number}").removeprefix(":").strip()
        return LineError(line.code or "invalid_line", text, line.number, line.param)
    if line.url != endpoint:
        text = f"url is {line.url}, but the batch's endpoint is {endpoint}"
        return LineError("url_mismatch", text, line.number, "url")
    assert line.custom_id is not None
    key = hashlib.blake2b(line.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
    first = seen.setdefault(key, line.number)
    if first != line.number:
        text = f"custom_id {line.custom_id[:100]!r} is that of line {first}, too; it must be unique in a batch"
        return LineError("duplicate_custom_id", text, line.number, "custom_id")
    return None
