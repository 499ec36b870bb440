"""Input files that are refused as a whole, with OpenAI's codes, lines and fields."""

import io
import json

import pytest

from medusa_dist.api.batches.validate import MAX_ERRORS, batch_lines, check_lines
from tests.support.batch_lines import line

URL = "/v1/completions"


def check(*lines, endpoint=URL, max_lines=1000):
    data = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines)
    return check_lines(batch_lines(io.BytesIO(data), "batch_1"), endpoint, max_lines)


@pytest.mark.parametrize(
    ("bad", "code", "param", "text"),
    [
        (b"{", "invalid_json_line", None, "not valid JSON"),
        (b"[1]", "invalid_json_line", None, "not a JSON object"),
        (b'{"url": "/v1/completions", "body": {}}', "missing_required_parameter", "custom_id", "non-empty string"),
        (b'{"custom_id": "x", "body": {}}', "missing_required_parameter", "url", "url must be"),
        (b'{"custom_id": "x", "url": "/v1/completions"}', "missing_required_parameter", "body", "JSON object"),
        (line("x", body=[]), "invalid_type", "body", "must be a JSON object"),
        (line("x", method="GET"), "invalid_method", "method", "must be POST"),
        (line("x", url="/v1/embeddings"), "invalid_url", "url", "/v1/embeddings"),
        (line("x", url="/v1/responses"), "url_mismatch", "url", "endpoint is /v1/completions"),
        (line("x", body={"stream": True}), "unsupported_parameter", "body.stream", "not streamed"),
        (line("x", extra=1), "unknown_parameter", "extra", "unknown key 'extra'"),
        (line("a"), "duplicate_custom_id", "custom_id", "'a' is that of line 1, too"),
    ],
)
def test_bad_line_is_named_with_its_number_code_and_field(bad, code, param, text):
    total, (error,) = check(line("a"), b"", bad, line("b"))
    assert total == 3 and (error.code, error.line, error.param) == (code, 3, param) and text in error.message


def test_good_files_of_all_three_urls_have_no_errors():
    for url in (URL, "/v1/chat/completions", "/v1/responses"):
        assert check(line("a", url=url), line("b", url=url), endpoint=url) == (2, [])


def test_empty_and_too_long_files_are_refused_without_a_line():
    assert [(e.code, e.line) for e in check(b"", b"  ")[1]] == [("empty_file", None)]
    (error,) = check(*[line(str(i)) for i in range(4)], max_lines=3)[1]
    assert error.code == "too_many_tasks" and "files.max_batch_lines" in error.message and error.line is None
    assert check(*[line(str(i)) for i in range(3)], max_lines=3) == (3, [])


def test_number_of_errors_is_bounded_and_the_last_one_says_how_many_more():
    total, errors = check(*[b"{"] * (MAX_ERRORS + 5))
    assert total == MAX_ERRORS + 5 and len(errors) == MAX_ERRORS
    assert errors[-1].code == "too_many_errors" and "6 more" in errors[-1].message


def test_seed_of_a_line_without_one_depends_on_batch_and_custom_id_alone():
    def seeds(batch_id):
        data = json.dumps(line("a")).encode() + b"\n" + json.dumps(line("b")).encode()
        return [one.body["seed"] for one in batch_lines(io.BytesIO(data), batch_id)]

    assert seeds("batch_1") == seeds("batch_1") and len({*seeds("batch_1"), *seeds("batch_2")}) == 4
