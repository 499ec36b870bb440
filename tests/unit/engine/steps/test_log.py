"""Step logs: what is written is read again, files stay bounded, and no trouble reaches the engine."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from medusa_dist.engine.steps.log import LoggedModel, StepLog, read_step_log
from medusa_dist.engine.steps.record import LoggedStep, VerifiedTree
from medusa_dist.errors import StepLogError
from medusa_dist.medusa.trees.tree import Tree

ABOUT = LoggedModel("m", "/models/m", "medusa: 3 heads", generation=0, pid=7)
TREE = VerifiedTree(
    request_id="cmpl-1",
    position=4,
    root=9,
    tree=Tree((2, 3, 4), (-1, -1, 0)),
    values=(0.5, 0.25, 0.125),
    drafters=(("heads",), ("heads", "lookup"), ()),
    num_ranked=7,
    num_worthwhile=5,
    accepted=(0, 2),
    tokens=(2, 4, 8),
)
RECORD = LoggedStep(
    step=12,
    at=1790000000.25,
    seconds={"schedule": 0.001, "forward": 0.02},
    num_rows=4,
    num_prompt_rows=0,
    num_running=1,
    num_waiting=2,
    kv_used_fraction=0.5,
    trees=(TREE,),
    drafted_for={"heads": 1, "lookup": 0},
    queue_seconds=(0.25, 0.5),
)


def steps_in(path: Path) -> list[int]:
    return [one.step for one in read_step_log(path) if isinstance(one, LoggedStep)]


def test_written_record_is_read_again(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "new" / "steps.jsonl", ABOUT)
    log(RECORD)
    log(replace(RECORD, step=13, trees=()))
    assert list(read_step_log(log.path)) == [ABOUT, RECORD, replace(RECORD, step=13, trees=())]
    assert len(log.path.read_text().splitlines()) == 3, "one line a step"
    assert log.path.stat().st_mode & 0o077 == 0, "answers can be read out of it"


def test_log_is_rotated_and_bounded(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", ABOUT, max_bytes=4000)
    for step in range(100):
        log(replace(RECORD, step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steps.1.jsonl", "steps.jsonl"]
    older, newer = tmp_path / "steps.1.jsonl", tmp_path / "steps.jsonl"
    assert all(path.stat().st_size < 4000 + 600 for path in (older, newer))
    assert steps_in(older) + steps_in(newer) == list(range(steps_in(older)[0], 100))
    assert next(iter(read_step_log(newer))) == ABOUT


def test_next_process_continues_the_file_and_a_second_one_takes_another(tmp_path: Path) -> None:
    first, second = (StepLog(tmp_path / "steps.jsonl", ABOUT) for _ in range(2))
    first(RECORD)
    second(replace(RECORD, step=99))
    assert steps_in(first.path) == [12] and second.path.name == "steps-2.jsonl" and steps_in(second.path) == [99]
    first.close()
    third = StepLog(tmp_path / "steps.jsonl", replace(ABOUT, generation=1))
    third(replace(RECORD, step=0))
    assert [one for one in read_step_log(first.path) if isinstance(one, LoggedModel)] == [ABOUT, third._about]
    assert steps_in(first.path) == [12, 0]


def test_file_that_cannot_be_written_is_refused_at_start_and_later_ends_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(StepLogError, match=r"step_log: .*a file/logs/steps.jsonl cannot be written: Not a directory"):
        StepLog(tmp_path / "a file" / "logs" / "steps.jsonl", ABOUT).open()
    log = StepLog(tmp_path / "steps.jsonl", ABOUT)
    log(RECORD)

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "write", full)
        log(RECORD)
    assert "No space left on device" in caplog.text and "no more steps are logged" in caplog.text
    log(RECORD)
    assert steps_in(log.path) == [12]


def test_file_that_is_no_step_log_is_never_written_to(tmp_path: Path) -> None:
    mine = tmp_path / "notes.jsonl"
    mine.write_text("mine\n")
    with pytest.raises(StepLogError, match="it exists and is not a step log"):
        StepLog(mine, ABOUT).open()
    StepLog(mine, ABOUT)(RECORD)
    assert mine.read_text() == "mine\n" and list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hello\n", r"steps.jsonl, line 1: not a line of a step log"),
        ('{"step": 1}\n', r"line 1: not a step log; the config key step_log makes one"),
        ('{"step_log": 2}\n', r"line 1: written by another version of medusa-dist \(form 2\)"),
        ('{"step_log": 1, "model": "m", "folder": "/", "speculation": "", "generation": 0, "pid": 1}\n[]\n', "line 2"),
    ],
)
def test_other_files_are_refused_with_file_and_line(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "steps.jsonl").write_text(text)
    with pytest.raises(StepLogError, match=error):
        list(read_step_log(tmp_path / "steps.jsonl"))
    with pytest.raises(StepLogError, match="cannot be read: No such file"):
        list(read_step_log(tmp_path / "gone.jsonl"))


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", ABOUT)
    log(RECORD)
    with log.path.open("a") as file:
        file.write(json.dumps({"step": 13})[:5])
    assert steps_in(log.path) == [12]
