"""The engine around a model that does nothing: whole steps, and nothing else is counted."""

import json

import pytest
from typer.testing import CliRunner

from medusa_dist.bench.null_bench import NullSetting, null_bench
from medusa_dist.bench.null_model import null_engine
from medusa_dist.cli.main import app
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams

PHASES = {"schedule", "broadcast", "prepare", "copy", "forward", "sample", "accept", "emit", "draft"}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_phases_are_timed_and_the_model_is_left_out() -> None:
    (row,) = null_bench(NullSetting([2], nodes=3, runs=2, steps=4), lambda _: None).rows
    assert (row.batch, row.nodes) == (2, 3) and set(row.phase_ms) == PHASES
    assert 0.0 < row.quiet_ms <= row.median_ms and 1.0 < row.tokens_per_step < 4.0
    # First deciles of the parts add up to no more than that of the sum.
    assert sum(ms for phase, ms in row.phase_ms.items() if phase != "forward") <= row.quiet_ms + 0.01


def test_the_null_engine_says_the_same_with_and_without_drafts() -> None:
    said = {}
    for speculation in (True, False):
        engine = null_engine(2, 6, 128)
        params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, speculation=speculation)
        for name in ("a", "b"):
            engine.submit(Request(request_id=name, prompt_ids=(3, ord(name)), params=params, seed=0))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        said[speculation] = {n: [t for o in outputs if o.request_id == n for t in o.token_ids] for n in ("a", "b")}
        assert (engine.stats().num_drafted > 0) is speculation
    assert said[True] == said[False] and said[True]["a"] != said[True]["b"]


def test_the_command_writes_the_report_and_refuses_what_has_no_meaning(tmp_path) -> None:
    path = tmp_path / "report.json"
    command = ["bench", "--null-model", "--batches", "1", "--pairs", "2", "--max-tokens", "3", "--speculation", "2"]
    done = CliRunner().invoke(app, [*command, "--output", str(path)])
    assert done.exit_code == 0, done.output
    assert json.loads(path.read_text())["rows"][0]["nodes"] == 2 and "draft" in done.output
    for wrong, words in ((["--dtype", "float32"], "--dtype has no meaning"), (["--speculation", "off"], "1 to 32")):
        done = CliRunner().invoke(app, [*command, *wrong])
        assert done.exit_code != 0 and words in done.output
