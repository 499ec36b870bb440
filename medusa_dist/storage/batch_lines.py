"""Lines of batches in OpenAI's format: of the input, as they are parsed, and of the output.

Owns what a line means, for the command (batch/) and for /v1/batches (api/batches/). Not here: the files that lines are
in, sending them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from medusa_dist.request import choice_seed

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
NO_RESPONSE = 0  # in place of a status
MAX_LINE_BYTES = 64 * 2**20  # a longer line is neither kept in memory nor sent
KEPT_BYTES = 1024  # of a line that is too long
BUFFER_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_KEYS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank. number: from 1. data: without white space around it; of a line that is too long, only
    its beginning.
    """

    number: int
    data: bytes
    is_whole: bool = True


def raw_lines(file: BinaryIO) -> Iterator[RawLine]:
    """All lines but blank ones."""
    for number, (part, is_whole) in enumerate(_split(file), start=1):
        data = part.removeprefix(_BOM).strip()  # files with a mark may have been joined
        if data:
            yield RawLine(number, data, is_whole)


def _split(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """(line, whether it is whole): a line beyond MAX_LINE_BYTES is read in parts, of which the first is kept."""
    while data := file.readline(MAX_LINE_BYTES + 1):
        is_whole = data.endswith(b"\n") or len(data) <= MAX_LINE_BYTES
        if not is_whole:
            data = data[:KEPT_BYTES]
            while (part := file.readline(BUFFER_BYTES)) and not part.endswith(b"\n"):
                pass
        yield data, is_whole


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One input line. id: of its output line, the same in every run with this file and this seed.

    number: line number in the file, from 1. problem: why it cannot be sent, else None, with OpenAI's code for it and
    the field. body has a seed: its own, or one derived from the job's.
    """

    id: str
    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] | None = None
    problem: str | None = None
    code: str | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class _Problem:
    code: str
    param: str
    text: str


def parse_line(raw: RawLine, seed: int) -> BatchLine:
    """Parse one input line. seed: the job's, for lines without one."""
    number = raw.number
    digest = hashlib.blake2b(f"{seed}/{number}/".encode() + raw.data, digest_size=12).hexdigest()
    name = f"batch_req_{digest}"

    def unreadable(text: str) -> BatchLine:
        return BatchLine(name, number, None, problem=f"line {number} {text}", code="invalid_json_line")

    if not raw.is_whole:
        return unreadable(f"is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        given = json.loads(raw.data.decode(), parse_constant=_no_constant)
    except ValueError as error:
        return unreadable(f"is not valid JSON: {error}")
    except RecursionError:
        return unreadable("is nested too deeply")
    if not isinstance(given, dict):
        return unreadable("is not a JSON object")
    custom_id = given.get("custom_id")
    problem = _problem(given)
    if problem is not None:
        known = custom_id if isinstance(custom_id, str) and custom_id else None
        text = f"line {number}: {problem.text}"
        return BatchLine(name, number, known, problem=text, code=problem.code, param=problem.param)
    body, custom_id = given["body"], str(custom_id)
    if body.get("seed") is None:
        # 53 bits, like seeds drawn by the service: JavaScript rounds larger numbers when it reads the response.
        body = {**body, "seed": choice_seed(seed, custom_id) % 2**53}
    return BatchLine(name, number, custom_id, given["url"], body)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _problem(given: dict[str, Any]) -> _Problem | None:
    missing = "missing_required_parameter"
    if not isinstance(given.get("custom_id"), str) or not given["custom_id"]:
        return _Problem(missing, "custom_id", "custom_id must be a non-empty string")
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        text = f"unknown key {unknown[0]!r}; a line has custom_id, method, url and body"
        return _Problem("unknown_parameter", unknown[0], text)
    if given.get("method", "POST") != "POST":
        return _Problem("invalid_method", "method", f"method must be POST, got {given['method']!r}")
    if given.get("url") not in URLS:
        text = f"url must be {', '.join(URLS[:-1])} or {URLS[-1]}, got {given.get('url')!r}"
        return _Problem("invalid_url" if "url" in given else missing, "url", text)
    if not isinstance(given.get("body"), dict):
        return _Problem("invalid_type" if "body" in given else missing, "body", "body must be a JSON object")
    if given["body"].get("stream"):
        text = "body.stream: batch lines are not streamed; remove it"
        return _Problem("unsupported_parameter", "body.stream", text)
    return None


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """The response to a line. body: the same JSON as over HTTP, including errors.

    status: of HTTP, or NO_RESPONSE; body is then our own error.
    """

    id: str
    custom_id: str | None
    status: int
    request_id: str
    body: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        """True for a completion, False for an error."""
        return NO_RESPONSE < self.status < 400

    def record(self) -> dict[str, Any]:
        """The output line. A failed line has OpenAI's response with the status, and a summary in `error`."""
        error = None
        if not self.is_ok:
            said = self.body.get("error") or {}
            error = {"code": said.get("code") or said.get("type") or str(self.status), "message": said.get("message")}
        response: dict[str, Any] | None = None
        if self.status != NO_RESPONSE:
            response = {"status_code": self.status, "request_id": self.request_id, "body": self.body}
        return {"id": self.id, "custom_id": self.custom_id, "response": response, "error": error}


def no_response(line_id: str, custom_id: str | None, why: str) -> LineAnswer:
    """The answer to a line that was sent and got no response."""
    return LineAnswer(line_id, custom_id, NO_RESPONSE, "", {"error": {"code": "no_response", "message": why}})


def refusal(line: BatchLine) -> dict[str, Any]:
    """The output line of an input line that was not sent."""
    error = {"code": "invalid_line", "message": line.problem}
    return {"id": line.id, "custom_id": line.custom_id, "response": None, "error": error}
