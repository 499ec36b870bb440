"""Batch files: every line has a place in the output, bad ones included; a killed job's output can be taken up again."""

import errno
import json
import os
from pathlib import Path

import pytest

from medusa_dist.batch.files import OutputFile, check_input, read_lines
from medusa_dist.batch.input_file import InputFile
from medusa_dist.errors import ConfigError
from medusa_dist.request import choice_seed
from medusa_dist.storage.batch_lines import LineAnswer, RawLine, parse_line, refusal
from tests.support.batch_lines import BODY, line, records, write


def parse(given, number=7, seed=1):
    raw = given if isinstance(given, bytes) else json.dumps(given).encode()
    return parse_line(RawLine(number, raw.strip()), seed)


def test_line_without_a_seed_gets_its_own_and_a_given_seed_is_kept():
    parsed = parse(line("a"))
    assert parsed.problem is None and parsed.url == "/v1/completions" and parsed.custom_id == "a"
    assert parsed.body == {**BODY, "seed": choice_seed(1, "a") % 2**53}
    assert parse(line("b")).body["seed"] != parsed.body["seed"] != parse(line("a"), seed=2).body["seed"]
    assert parse(line("a"), number=9).body == parsed.body
    assert parse(line(body={**BODY, "seed": 5})).body["seed"] == 5
    assert parse(line(body={**BODY, "seed": 0})).body["seed"] == 0
    assert parse(line(body={**BODY, "seed": None})).body["seed"] == parsed.body["seed"]


def test_line_id_depends_on_content_line_number_and_job_seed():
    assert parse(line()).id == parse(json.dumps(line()).encode() + b"\r\n").id
    assert len({parse(line()).id, parse(line(), number=8).id, parse(line(), seed=2).id, parse(line("b")).id}) == 4


@pytest.mark.parametrize(
    ("given", "custom_id", "problem"),
    [
        (b'{"custom_id": "a"', None, "line 7 is not valid JSON"),
        (b'{"custom_id": "\xff"}', None, "line 7 is not valid JSON"),
        (b'{"body": {"temperature": NaN}}', None, "line 7 is not valid JSON: NaN is not a JSON value"),
        (b"[" * 100_000, None, "line 7 is nested too deeply"),
        (b"[1]", None, "not a JSON object"),
        (line(""), None, "custom_id must be"),
        (line(custom_id=3), None, "custom_id must be"),
        (
            line(url="/v1/embeddings"),
            "a",
            "url must be /v1/chat/completions, /v1/completions or /v1/responses, got '/v1/embeddings'",
        ),
        (line(method="GET"), "a", "method must be POST, got 'GET'"),
        (line(body=[]), "a", "body must be a JSON object"),
        (line(body={**BODY, "stream": True}), "a", "body.stream"),
        (line(bodi={}), "a", "unknown key 'bodi'"),
    ],
)
def test_invalid_line_is_refused_naming_its_number_and_problem(given, custom_id, problem):
    parsed = parse(given)
    assert problem in parsed.problem and "line 7" in parsed.problem and parsed.custom_id == custom_id
    record = refusal(parsed)
    assert record["response"] is None and record["custom_id"] == custom_id
    assert record["error"] == {"code": "invalid_line", "message": parsed.problem}


def test_output_line_has_openais_format_for_answers_and_errors():
    good = LineAnswer("batch_req_1", "a", 200, "req", {"choices": []}).record()
    assert good == {
        "id": "batch_req_1",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req", "body": {"choices": []}},
        "error": None,
    }
    body = {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": None}}
    bad = LineAnswer("batch_req_1", "a", 400, "req", body).record()
    assert bad["response"]["status_code"] == 400 and bad["response"]["body"] == body
    assert bad["error"] == {"code": "invalid_request_error", "message": "no"}


def test_missing_empty_and_duplicate_id_inputs_are_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    with pytest.raises(ConfigError, match=r"in.jsonl cannot be read: No such file"):
        check_input(InputFile(path), 0)
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match="is empty"):
        check_input(InputFile(path), 0)
    write(path, [line("a"), b"", line("b"), b"{", b"{", line("a")])
    with pytest.raises(ConfigError, match=r"custom_ids must be unique; repeated: 'a' in lines 1 and 6$"):
        check_input(InputFile(path), 0)
    write(path, [line(str(i % 10)) for i in range(20)])
    with pytest.raises(ConfigError, match=r"and 5 more$"):
        check_input(InputFile(path), 0)
    write(path, [line("a"), b"", line("b"), b"{", b"{"])
    assert check_input(InputFile(path), 0) == 4  # two lines without an id are no duplicates


def test_existing_output_is_refused_naming_the_option_that_helps(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists; use --overwrite to replace it"):
        OutputFile(path, "refuse")
    with pytest.raises(ConfigError, match="is complete, with nothing to resume"):
        OutputFile(path, "resume")
    assert path.read_text() == "precious"
    path.unlink()
    (tmp_path / "out.jsonl.partial").write_text("")
    with pytest.raises(ConfigError, match=r"out.jsonl.partial exists: .* use --resume to continue it"):
        OutputFile(path, "refuse")
    with pytest.raises(ConfigError, match=r"the folder .* does not exist"):
        OutputFile(tmp_path / "no" / "out.jsonl", "refuse")


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.jsonl.gz", "the output is not compressed; give a name without .gz"), ("-", "the output must be a file")],
)
def test_an_output_that_a_job_cannot_write_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        OutputFile(Path(name), "refuse")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_keeps_what_is_written(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"

    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with OutputFile(path, "refuse") as output:
        output.write(refusal(parse(b"{")))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(ConfigError, match=r"No space left on device; 1 lines are in it, and --resume continues"):
            output.write(refusal(parse(b"[")))
    assert len(records(tmp_path / "out.jsonl.partial")) == 1


@pytest.mark.parametrize("tail", [b'{"id": "batch', b"\0" * 500, b'{"id": "x"}'], ids=["cut", "zeros", "no end"])
def test_whatever_follows_the_last_whole_line_is_written_anew(tmp_path, tail):
    path = tmp_path / "out.jsonl"
    with OutputFile(path, "refuse") as output:
        output.write(refusal(parse(b"{")))
    partial = tmp_path / "out.jsonl.partial"
    whole = partial.read_bytes()
    partial.write_bytes(whole + tail)
    with OutputFile(path, "resume") as output:
        assert output.done == {parse(b"{").id}
        output.complete()
    assert path.read_bytes() == whole


def test_torn_partial_output_resumes_after_its_last_whole_line(tmp_path):
    path = tmp_path / "out.jsonl"
    answers = [LineAnswer(f"batch_req_{i}", str(i), 200, "r", {"system_fingerprint": "f"}).record() for i in range(3)]
    with OutputFile(path, "refuse") as output:
        output.write(answers[0])
        output.write(refusal(parse(b"{")))
    partial = tmp_path / "out.jsonl.partial"
    whole = partial.read_bytes()
    partial.write_bytes(whole + json.dumps(answers[1]).encode()[:40])
    assert not path.exists()
    with OutputFile(path, "resume") as output:
        assert output.done == {"batch_req_0", parse(b"{").id}
        assert (output.num_failed, output.fingerprints) == (1, {"f"})
        output.write(answers[1])
        output.complete()
    assert path.read_bytes().startswith(whole)
    assert [r["custom_id"] for r in records(path)] == ["0", None, "1"]
    assert not partial.exists()


def test_overwriting_keeps_the_old_output_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with OutputFile(path, "overwrite") as output:
        output.write(refusal(parse(b"{")))
        assert path.read_text() == "old"
        output.complete()
    assert len(records(path)) == 1


def test_two_jobs_never_write_one_output(tmp_path):
    with OutputFile(tmp_path / "out.jsonl", "refuse") as output:
        output.write(refusal(parse(b"{")))
        with pytest.raises(ConfigError, match="being written by another job"):
            OutputFile(tmp_path / "out.jsonl", "resume")


def test_job_that_wrote_nothing_leaves_no_file(tmp_path):
    with OutputFile(tmp_path / "out.jsonl", "refuse"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_partial_file_is_refused(tmp_path):
    (tmp_path / "out.jsonl.partial").write_text("[1]\n")
    with pytest.raises(ConfigError, match="is not an output of this command"):
        OutputFile(tmp_path / "out.jsonl", "resume")


def test_blank_lines_are_skipped_but_counted_in_line_numbers(tmp_path):
    path = tmp_path / "in.jsonl"
    write(path, [line("a"), b"", line("b")])
    assert [(one.number, one.custom_id) for one in read_lines(InputFile(path), 0)] == [(1, "a"), (3, "b")]
