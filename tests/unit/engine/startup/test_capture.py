"""Whether steps are captured, and what is said if not."""

import logging

import pytest
import torch

from medusa_dist.engine.runner.graph_buckets import graph_buckets
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.capture import capture_steps, why_eager
from medusa_dist.ops.attention.registry import BACKENDS
from medusa_dist.ops.gpu.step_graph import PlainCall
from medusa_dist.ops.tp_group import TPGroup
from tests.support.graphed_rank import twin_worker
from tests.support.tiny_engine import save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory) -> EngineRank:
    folder = tmp_path_factory.mktemp("llama")
    save_model("llama", folder)
    return EngineRank(tiny_config(folder), folder)


def test_only_triton_on_a_gpu_is_captured_unless_the_config_says_no(rank: EngineRank) -> None:
    made = {name: BACKENDS[name](64, 2, torch.bfloat16) for name in ("triton", "sdpa")}
    assert why_eager(rank.config, GPU, made["triton"], fits=True) is None
    assert "only triton" in why_eager(rank.config, GPU, made["sdpa"], fits=True)
    assert "cpu has no" in why_eager(rank.config, CPU, made["triton"], fits=True)
    assert "another head shape" in why_eager(rank.config, GPU, made["triton"], fits=False)
    off = rank.config.model_copy(update={"cuda_graphs": "off"})
    assert why_eager(off, GPU, made["triton"], fits=True) == "cuda_graphs: off"
    assert rank.facts["cuda_graphs"] == "no: cpu has no CUDA graphs"


def test_steps_of_all_decoding_sequences_are_captured(rank: EngineRank) -> None:
    worker = twin_worker(rank)
    assert capture_steps(worker, rank.config, None, PlainCall) == "steps of up to 128 rows"
    assert worker.buckets == graph_buckets(8, 15) == (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def test_a_model_that_cannot_be_captured_runs_launch_by_launch_and_the_log_says_why(
    rank: EngineRank, caplog: pytest.LogCaptureFixture
) -> None:
    worker = twin_worker(rank)

    def refuse(function):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    with caplog.at_level(logging.WARNING):
        said = capture_steps(worker, rank.config, None, refuse)
    assert said == "no: CUDA error: operation not permitted when stream is capturing" and worker.buckets == ()
    assert "launched one by one: CUDA error: operation not permitted" in caplog.text


def test_no_rank_captures_if_another_one_cannot(rank: EngineRank, monkeypatch: pytest.MonkeyPatch) -> None:
    for failing in (0, 1):  # the other rank says so before, or fails meanwhile
        worker, answers = twin_worker(rank), iter([1] * failing + [0])
        monkeypatch.setattr(TPGroup, "all_reduce_min", lambda self, value, answers=answers: min(value, next(answers)))
        assert "another rank" in capture_steps(worker, rank.config, None, PlainCall)
        assert worker.buckets == ()
