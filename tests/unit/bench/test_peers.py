"""Peers: what they are asked, what vLLM's process is given, and how it ends. A stand-in plays vLLM."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from medusa_dist.bench import peers as bench_peers
from medusa_dist.bench.peers import PeerOptions, VllmPeer, vllm_environment
from medusa_dist.errors import ConfigError, EngineError

FAKE_VLLM = """
import os, time
__version__ = "9.9"
class SamplingParams:
    def __init__(self, **given): self.given = given
class Text:
    def __init__(self, ids): self.outputs = [type("O", (), {"token_ids": ids})]
class LLM:
    def __init__(self, **settings): print("noise on standard output"); self.settings = settings
    def generate(self, prompts, params, use_tqdm):
        assert params.given["temperature"] == 0.0 and params.given["ignore_eos"] and not use_tqdm
        assert self.settings.pop("enable_prefix_caching") is False
        assert self.settings == {"model": "folder", "dtype": "float32", "max_model_len": 64, "max_num_seqs": 8}
        self.settings["enable_prefix_caching"] = False
        if prompts[0]["prompt_token_ids"] == [0]: os._exit(3)
        if prompts[0]["prompt_token_ids"] == [1]: time.sleep(30)
        time.sleep(0.02)
        return [Text(tuple(p["prompt_token_ids"][:1]) * params.given["max_tokens"]) for p in prompts]
"""


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """vLLM's script over the stand-in, run by a Python that finds it."""
    (tmp_path / "vllm.py").write_text(FAKE_VLLM)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    made = VllmPeer(str(python), Path("folder"), "float32", 64, (2, 8))
    yield made
    made.close()


def test_vllm_peer_answers_and_is_stopped_while_others_are_measured(peer: VllmPeer) -> None:
    assert peer.name == "vllm 9.9" and peer.batches == (2, 8)
    answers = peer.decode([[5, 6], [7]], 3)
    assert answers.tokens == [(5, 5, 5), (7, 7, 7)]
    assert answers.seconds >= 0.02 and answers.rate == 6 / answers.seconds
    state = Path(f"/proc/{peer._process.pid}/stat")
    if state.exists():  # Linux
        deadline = time.monotonic() + 10
        while (seen := state.read_text().rsplit(")", 1)[1].split()[0]) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen == "T", "stopped while others are measured"
    peer.close()
    assert peer._process.returncode == 0


def test_vllm_process_that_exits_is_an_engine_error(peer: VllmPeer) -> None:
    with pytest.raises(EngineError, match="vLLM has exited"):
        peer.decode([[0]], 1)
    with pytest.raises(EngineError, match="vLLM has exited"):
        peer.decode([[5]], 1)


def test_vllm_process_that_hangs_times_out_and_is_ended(peer: VllmPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peers, "_ANSWER_S", 0.1)
    monkeypatch.setattr(bench_peers, "_END_S", 0.1)
    with pytest.raises(EngineError, match="did not respond"):
        peer.decode([[1]], 1)
    begin = time.monotonic()
    peer.close()
    assert time.monotonic() - begin < 5 and peer._process.returncode != 0


def test_vllm_script_imports_neither_medusa_dist_nor_torch() -> None:
    script = Path(bench_peers.__file__).with_name("vllm_script.py")
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import runpy, sys; runpy.run_path({str(script)!r}); print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [name for name in done.stdout.split() if name.startswith(("medusa_dist", "torch", "vllm"))]


def test_vllm_environment_has_our_thread_cores_and_no_pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peers.os, "sched_getaffinity", lambda _: {3, 1, 2})
    ours = {"PYTHONPATH": "x", "OMP_NUM_THREADS": "7", "HOME": "h", "VLLM_CPU_KVCACHE_SPACE": "9"}
    made = vllm_environment(ours, 2)
    assert made == {"VLLM_CPU_OMP_THREADS_BIND": "1,2", "VLLM_CPU_KVCACHE_SPACE": "9", "HOME": "h"}


def test_unknown_peer_and_unusable_peer_python_are_refused() -> None:
    assert PeerOptions().sizes == (1,) == PeerOptions(("transformers",)).sizes
    assert PeerOptions(("vllm",), "python", (4, 32)).sizes == (4, 32)
    with pytest.raises(ConfigError, match="'tgi' is unknown; use one of transformers, vllm"):
        PeerOptions(("tgi",))
    with pytest.raises(ConfigError, match="--peer-python"):
        PeerOptions(("vllm",))
    with pytest.raises(ConfigError, match="cannot be run"):
        VllmPeer("/no/such/python", Path("folder"), "float32", 64, (1,))
