"""serve_configs/llama70b.yaml as it is, over a tiny Llama with the 70B's heads: 8 ranks on CPUs, over HTTP, exact.

Only the keys that name the model, its heads and the device are replaced, and the port. CPUs are tickets to Ray: the
cluster of this test says it has 16.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from ray.cluster_utils import Cluster
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medusa_dist import LLM, SamplingParams
from medusa_dist.model.fingerprint import fingerprint
from tests.support.tiny_heads import save_heads

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).parents[2]
VOCAB, HIDDEN = 997, 64
START_S = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 query heads, 8 key-value heads, 2 layers; token i is the text "t<i> ". In heads/: three heads for it."""
    folder = tmp_path_factory.mktemp("llama70b-tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=211,
        num_hidden_layers=2,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=4,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    # Small blocks over the model's own output rows: each head repeats the model's last guess, right in its cycles.
    save_heads(folder / "heads", HIDDEN, VOCAB, 0.05, fingerprint=fingerprint(folder))
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service, started by the command a user types."""
    raw = yaml.safe_load((ROOT / "serve_configs" / "llama70b.yaml").read_text())
    port = raw["http_options"]["port"] = free_port()
    (application,) = raw["applications"]
    replaced = {"model": str(model), "heads": {"source": str(model / "heads")}, "device": "cpu", "dtype": "float32"}
    assert application["args"].pop("max_model_len") > 512  # the tiny model has no more
    application["args"] |= replaced
    assert application["args"]["tensor_parallel_size"] == 8
    path = tmp_path_factory.mktemp("config") / "llama70b.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # sixteen idle processes would do nothing but start
        node = {"num_cpus": 16, "num_gpus": 0, "include_dashboard": False, "dashboard_port": free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=node)
    log = path.with_name("serve.log")
    with log.open("w") as output:
        command = [sys.executable, "-m", "medusa_dist.cli.main", "serve", str(path), "--address", cluster.address]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        begin = time.monotonic()
        while "Ctrl-C to stop" not in log.read_text():
            assert process.poll() is None and time.monotonic() - begin < START_S, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=90)
        finally:
            process.kill()
            cluster.shutdown()
    assert process.returncode == 0, log.read_text()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = (1, 5, 40, 100, 17, 64)
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def test_eight_ranks_with_heads_give_the_tokens_of_one_without(url: str, model: Path) -> None:
    each = [SamplingParams(max_tokens=48, temperature=0.7 * (i % 2), seed=100 + i) for i in range(len(prompts()))]
    with LLM(str(model), dtype="float32", device="cpu", speculation="off", max_running=8) as llm:
        alone = llm.generate(prompts(), each)
    with httpx.Client(base_url=url, timeout=120) as client:
        card = client.get("/v1/models").json()["data"][0]
        assert card["id"] == "Llama-3.3-70B-Instruct" and card["tensor_parallel_size"] == 8
        assert card["speculation"] == "medusa: 3 heads and lookup, at most 31 draft tokens per step"
        num_drafted = num_accepted = 0
        for prompt, params, expected in zip(prompts(), each, alone, strict=True):
            body = {
                "model": card["id"],
                "prompt": prompt,
                "max_tokens": params.max_tokens,
                "temperature": params.temperature,
                "seed": params.seed,
            }
            answer = client.post("/v1/completions", json=body).json()
            ids = [int(word.removeprefix("t")) for word in answer["choices"][0]["text"].split()]
            assert ids == list(expected.token_ids)
            counts = answer["metrics"]["speculative_decoding"]
            num_drafted += counts["num_draft_tokens"]
            num_accepted += counts["num_accepted_draft_tokens"]
    assert num_drafted > 0 and num_accepted > 0, (num_drafted, num_accepted)
