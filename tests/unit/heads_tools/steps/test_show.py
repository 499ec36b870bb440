"""What a reader finds in the tables and drawings of a step log."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from medusa_dist.engine.steps.log import LoggedModel, StepLog
from medusa_dist.engine.steps.record import LoggedStep
from medusa_dist.errors import StepLogError
from medusa_dist.heads_tools.steps.show import LoggedSteps, TokenIds, log_pictures, show_log, tokenizer_of
from tests.support.step_records import step, tree
from tests.support.tiny_llm import save_llm

ABOUT = LoggedModel("nobody/model", "/nowhere", "medusa: 2 heads", generation=0, pid=1)
RECORDS = [
    replace(step(tree((0,), name="good")), step=5),
    replace(step(tree((0, 2), name="best"), tree((1,), name="other")), step=6),
    replace(step(tree(name="worst", ranked=9, worthwhile=3)), step=7),
]


def logged(tmp_path: Path, *records: LoggedStep, number: int | None = None, about: LoggedModel = ABOUT) -> LoggedSteps:
    log = StepLog(tmp_path / "steps.jsonl", about)
    log.open()
    for record in records:
        log(record)
    log.close()
    return LoggedSteps(log.path, number)


def shown(log: LoggedSteps) -> str:
    stream = io.StringIO()
    show_log(log, TokenIds(), Console(file=stream, width=160))
    return stream.getvalue()


def row(text: str, first: str) -> list[str]:
    """Cells of the table row that begins with this one."""
    line = next(line for line in text.splitlines() if line.startswith(f"│ {first} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_tables_have_the_cuts_the_heads_and_the_phases(tmp_path: Path) -> None:
    text = shown(logged(tmp_path, *RECORDS))
    assert "nobody/model (medusa: 2 heads)" in text and "8 tokens of 4 requests in 3 steps" in text
    assert row(text, "found")[1] == "24" and row(text, "worthwhile")[1:3] == ["15", "62.5 %"]
    assert row(text, "verified")[1] == "12" and row(text, "accepted")[1:3] == ["4", "16.7 %"]
    assert row(text, "depth 1")[1:4] == ["8", "3", "37.5 %"] and row(text, "depth 2")[1:4] == ["4", "1", "25.0 %"]
    assert row(text, "lookup")[1:3] == ["8", "2"] and row(text, "heads")[-1] == "?"
    assert "break-even unknown" in text
    assert row(text, "forward")[1:3] == ["20.00", "80.0 %"]
    assert row(text, "0")[1:3] == ["1", "25.0 %"] and row(text, "2")[1] == "1"


def test_heads_that_pay_and_heads_that_do_not_are_told_apart(tmp_path: Path) -> None:
    """A row costs a tenth of a step; depth 1 is accepted half the time, depth 2 never."""
    steps = [step(tree((0,)), rows=rows, ms=10.0 + 2.0 * rows) for rows in (4, 5, 6)] * 20
    text = shown(logged(tmp_path, *steps))
    assert row(text, "depth 1")[-1] == "yes" and row(text, "depth 2")[-1] == "no"
    assert "a row costs 2.00 ms here, so a draft pays above 10.0 %" in text


def test_best_and_worst_trees_are_drawn_or_the_step_that_was_asked_for(tmp_path: Path) -> None:
    text = shown(logged(tmp_path, *RECORDS))
    assert text.index("most drafts accepted") < text.index("request best, after 0 tokens")
    assert "request worst, after 0 tokens; of 9 drafts 6 cost more than they gain" in text
    assert "request other" not in text and "request good" not in text
    assert "✓ '#2'" in text and "· '#3'" in text and "➜ '#7'" in text
    asked = shown(LoggedSteps(tmp_path / "steps.jsonl", 6))
    assert "request best" in asked and "request other" in asked and "request worst" not in asked
    with pytest.raises(StepLogError, match=r"--step: .* has no step 8; it has 5 to 7"):
        LoggedSteps(tmp_path / "steps.jsonl", 8)


def test_log_without_drafts_has_no_empty_tables(tmp_path: Path) -> None:
    text = shown(logged(tmp_path, replace(step(), drafted_for={})))
    assert "Where drafts were cut" not in text and "Where a step's time goes" in text
    with pytest.raises(StepLogError, match="no step was logged yet"):
        logged(tmp_path / "empty")


def test_tokens_are_spelt_by_the_logged_models_tokenizer_or_shown_by_their_ids(tmp_path: Path) -> None:
    save_llm(tmp_path)
    warnings: list[str] = []
    found = tokenizer_of(replace(ABOUT, model=str(tmp_path), folder=str(tmp_path)), warnings.append)
    assert found.decode(found.encode("hello", add_special_tokens=False)) == "hello" and not warnings
    assert tokenizer_of(ABOUT, warnings.append).decode([7, 8]) == "#7 #8"
    assert "tokens are shown by their ids: /nowhere" in warnings[0]


def test_pictures_are_those_of_the_drawn_trees(tmp_path: Path) -> None:
    best, worst = log_pictures(logged(tmp_path, *RECORDS), TokenIds())
    assert best.title == "step 6: most drafts accepted" and worst.title == "step 7: most drafts rejected"
    assert [node.kind for node in best.nodes] == ["accepted", "rejected", "accepted", "own"]
    assert best.nodes[-1].parent == 2 and "request best, after 0 tokens" in best.captions[1]
