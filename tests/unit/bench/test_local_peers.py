"""Peers: our engine unquantized, and llama.cpp by a stand-in for xllamacpp."""

from pathlib import Path
from typing import Any

import pytest

from medusa_dist.bench import peers as bench_peers
from medusa_dist.bench.bench import Setting, bench
from medusa_dist.bench.peers import LlamaCppPeer, PeerOptions, open_peers
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM
from medusa_dist.ops.cpu.packed_weights import int8_refusal
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_tool_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
BATCHES = (1, 3)


FAKE = """
import json, os
from types import SimpleNamespace
__version__ = "9.9"
class CommonParams:
    def __init__(self):
        self.model, self.cpuparams, self.cpuparams_batch = (SimpleNamespace() for _ in range(3))
class Server:
    def __init__(self, params):
        print("noise on standard output")
        asked = params.n_parallel, params.n_ctx, params.cpuparams.n_threads, params.cpuparams_batch.n_threads
        assert asked == (3, 3 * int(os.environ["LONGEST"]), 1, 1), asked
        assert params.model.path.endswith("model.gguf")
    def handle_completions(self, request):
        assert request["temperature"] == 0.0 and request["ignore_eos"] and request["cache_prompt"] is False
        if not request["prompt"]:
            return "a broken prompt"
        count = 4 if request["prompt"] == [9] else request["n_predict"]
        return {"choices": [{"text": "ab" * len(request["prompt"])}], "usage": {"completion_tokens": count}}
"""


@pytest.fixture
def package(tmp_path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for xllamacpp, which this process and its children find."""
    (tmp_path / "xllamacpp.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LONGEST", str(llm.facts["max_model_len"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("peers")
    save_llm(made)
    return made


@pytest.fixture
def llm(folder: Path) -> Any:
    with LLM(str(folder), heads=str(folder / "heads"), speculation=2, kv_cache_tokens=2048) as llm:
        yield llm


def peer(tmp_path: Path, llm: LLM) -> LlamaCppPeer:
    (tmp_path / "model.gguf").touch()
    return LlamaCppPeer(tmp_path / "model.gguf", llm, BATCHES)


def test_llama_cpp_gets_the_prompts_and_as_many_places_and_tokens_as_ours(
    tmp_path: Path, llm: LLM, package: None
) -> None:
    made = peer(tmp_path, llm)
    assert made.name == "llama.cpp 9.9 (model.gguf)" and made.batches == BATCHES
    answers = made.decode([[1, 2], [3], [4, 5, 6, 7]], max_tokens=5)
    ab = tuple(llm.tokenizer.encode("ab", add_special_tokens=False))
    assert answers.tokens == [(*ab, *ab, -1), (*ab, -1, -1, -1), (*ab, *ab, ab[0])]
    assert answers.rate == pytest.approx(15 / answers.seconds)
    made.close()
    assert made._process.returncode == 0


@pytest.mark.parametrize("prompt", [[], [9]], ids=["broken", "fewer tokens"])
def test_llama_cpp_that_does_not_do_the_same_work_is_an_error(
    tmp_path: Path, llm: LLM, package: None, prompt: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    made = peer(tmp_path, llm)
    with pytest.raises(EngineError, match=r"llama.cpp has exited; see its output"):
        made.decode([prompt], 5)
    made.close()
    said = capfd.readouterr().err
    assert "did not answer: a broken prompt" in said or "gave 4 tokens instead of 5" in said


def test_what_a_peer_lacks_is_named(tmp_path: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--peer-gguf: there is no file"):
        LlamaCppPeer(tmp_path / "none.gguf", llm, BATCHES)
    monkeypatch.setattr(bench_peers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install xllamacpp"):
        peer(tmp_path, llm)
    with pytest.raises(ConfigError, match=r"--peer llama.cpp requires --peer-gguf"):
        PeerOptions(("llama.cpp",))
    with (
        pytest.raises(ConfigError, match="--peer unquantized compares with --quantization int8"),
        open_peers(PeerOptions(("unquantized",)), llm, lambda _: None),
    ):
        pass


@pytest.mark.skipif(int8_refusal() is not None, reason=f"8-bit products: {int8_refusal()}")
def test_our_own_engine_without_quantization_is_a_peer(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nbc\ndef\n")
    options = {"heads": str(folder / "heads"), "speculation": 2, "kv_cache_tokens": 2048}
    options |= {"dtype": "float32", "quantization": "int8"}
    with (
        LLM(str(folder), **options) as rounded,
        LLM(str(folder), **(options | {"quantization": "none"})) as plain,
        open_peers(PeerOptions(("unquantized",), None, BATCHES), rounded, lambda _: None) as peers,
    ):
        ids = [plain.tokenizer.encode(text) for text in ("a", "bc")]
        expected = plain.generate(
            [{"prompt_token_ids": i} for i in ids], SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
        )
        assert peers[0].decode(ids, 6).tokens == [(*each.outputs[0].token_ids,) for each in expected]
        report = bench(
            rounded, Setting([1], [0.0], pairs=2, waves=1, max_tokens=9, prompts=prompts), peers, lambda _: None
        )
    assert [(row.batch, row.drafts) for row in report.peers] == [(1, True), (1, False), (3, True), (3, False)]
    assert all(row.peer == "medusa_dist, float32 weights" and row.num_answers == 2 * row.batch for row in report.peers)
