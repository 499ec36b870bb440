"""The course of a batch job, with a sender that loses lines, fails and breaks off as it is told to."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from medusa_dist.batch import passes
from medusa_dist.batch.job import run_batch
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.tools import progress
from tests.support.batch_lines import BODY, FakeSender, line, records, write


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(passes, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "in.jsonl", [line(f"id{i}") for i in range(10)])
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(files, sender, seed=0, existing="refuse"):
    console = Console(file=io.StringIO())
    return run_batch(*files, lambda: sender, console, seed, existing)


def test_every_input_line_gets_one_output_line(files):
    write(files[0], [line("a"), b"{", line("b", url="/nope"), line("c")])
    sender = FakeSender(lambda one, n: 400 if one.custom_id == "c" else 200)
    counts = run(files, sender)
    assert (counts.num_lines, counts.num_failed) == (4, 3)
    found = {r["custom_id"]: r for r in records(files[1])}
    assert len(records(files[1])) == 4 and set(found) == {"a", None, "b", "c"}
    assert found["a"]["error"] is None and found["a"]["response"]["status_code"] == 200
    assert "line 2 is not valid JSON" in found[None]["error"]["message"]
    assert found["b"]["response"] is None
    assert found["c"]["response"]["status_code"] == 400 and found["c"]["error"]["message"] == "no"
    assert sender.sent == ["a", "c"]


def test_lines_without_an_answer_are_sent_again(files):
    sender = FakeSender(lambda one, n: None if n == 1 and one.custom_id in ("id3", "id7") else 200)
    assert run(files, sender).num_failed == 0
    assert sender.sent[10:] == ["id3", "id7"]
    assert sorted(r["custom_id"] for r in records(files[1])) == [f"id{i}" for i in range(10)]


def test_line_answered_503_three_times_fails_alone(files):
    sender = FakeSender(lambda one, n: 503 if one.custom_id == "id3" else 200)
    assert run(files, sender).num_failed == 1
    assert sender.sent.count("id3") == 3
    assert next(r for r in records(files[1]) if r["custom_id"] == "id3")["response"]["status_code"] == 503


def test_service_that_stops_answering_ends_the_job_which_can_be_resumed(files):
    sender = FakeSender(lambda one, n: 200 if one.custom_id < "id4" else None)
    with pytest.raises(EngineError, match="--resume"):
        run(files, sender)
    assert not files[1].exists()
    counts = run(files, FakeSender(), existing="resume")
    assert (counts.num_lines, counts.num_resumed, counts.num_failed) == (10, 4, 0)
    assert sorted(r["custom_id"] for r in records(files[1])) == [f"id{i}" for i in range(10)]


def test_resuming_sends_only_what_is_missing_with_the_same_seeds(files):
    with pytest.raises(RuntimeError):
        run(files, FakeSender(lambda one, n: RuntimeError("killed") if one.custom_id == "id6" else 200), seed=9)
    resumed = FakeSender()
    run(files, resumed, seed=9, existing="resume")
    assert resumed.sent == ["id6", "id7", "id8", "id9"]
    seeds = {r["custom_id"]: r["response"]["body"]["seed"] for r in records(files[1])}
    run(files, FakeSender(), seed=9, existing="overwrite")
    assert seeds == {r["custom_id"]: r["response"]["body"]["seed"] for r in records(files[1])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "do not come from .* with job seed 1"),
        ({"lines": [line(f"id{i}", body={**BODY, "max_tokens": 3}) for i in range(10)]}, "contains 5 lines"),
        ({"fingerprint": "g"}, "was produced by f, but this service is g"),
    ],
)
def test_resuming_another_job_is_refused_and_loses_nothing(files, change, message):
    with pytest.raises(RuntimeError):
        run(files, FakeSender(lambda one, n: RuntimeError() if one.custom_id == "id5" else 200))
    before = files[1].with_name("out.jsonl.partial").read_bytes()
    if "lines" in change:
        write(files[0], change["lines"])
    with pytest.raises(ConfigError, match=message):
        run(files, FakeSender(fingerprint=change.get("fingerprint", "f")), change.get("seed", 0), "resume")
    assert files[1].with_name("out.jsonl.partial").read_bytes() == before


def test_refused_files_start_no_service(files):
    def never():
        raise AssertionError("started")

    files[1].write_text("x")
    with pytest.raises(ConfigError):
        run_batch(*files, never, Console(file=io.StringIO()), 0, "refuse")
    with pytest.raises(ConfigError, match="both input and output"):
        run_batch(files[0], files[0], never, Console(file=io.StringIO()), 0, "overwrite")
    assert len(files[0].read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("stopped_at", "text"),
    [
        ("id4", "stopped: 4 of 10 lines are done and kept in {partial}; the same command with --resume continues"),
        ("id0", "stopped: none of 10 lines is done, and nothing was written"),
    ],
)
def test_a_stopped_job_says_how_far_it_came_and_how_to_go_on(files, stopped_at, text):
    sender = FakeSender(lambda one, n: KeyboardInterrupt() if one.custom_id == stopped_at else 200)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_batch(*files, lambda: sender, Console(file=out, soft_wrap=True), 0, "refuse")
    partial = files[1].with_name("out.jsonl.partial")
    assert text.format(partial=partial) in out.getvalue()
    assert partial.exists() == (stopped_at == "id4")


def test_standard_input_is_read_like_a_file(files, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(files[0].read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    counts = run((Path("-"), files[1]), FakeSender(lambda one, n: None if n == 1 and one.custom_id == "id3" else 200))
    assert (counts.num_lines, counts.num_failed) == (10, 0)
    assert sorted(r["custom_id"] for r in records(files[1])) == [f"id{i}" for i in range(10)]


def test_progress_is_printed_without_a_terminal(files, monkeypatch):
    monkeypatch.setattr(progress, "REPORT_S", 0.0)
    out = io.StringIO()
    counts = run_batch(*files, FakeSender, Console(file=out), 5, "refuse")
    text = out.getvalue()
    assert "10 lines, job seed 5" in text and "processing: 7 of 10 lines, 0 failed, " in text and " lines/s, " in text
    assert str(counts).startswith("10 lines: 10 succeeded, 0 failed; ")
    assert json.loads(files[1].read_text().splitlines()[0])["custom_id"] == "id0"
