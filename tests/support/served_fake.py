"""A Serve application over the stand-in engine: its folder, its requests, its streams."""

import json
import os
import time

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from medusa_dist.config import Config

STACK = "tests.support.fake_stack"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tokenizer whose token i is the text "t<i> "."""
    path = tmp_path_factory.mktemp("tokenizer")
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(997)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return str(path)


def config(folder: str, **changes) -> Config:
    return Config.model_validate(
        {
            "model": f"fake:ok:{folder}",
            "served_model_name": "fake",
            "device": "cpu",
            "tensor_parallel_size": 2,
            "resources": {"cpus_per_rank": 0.5, "threads_per_rank": 1, "front_cpus": 0.5},
            "timeouts": {"step_s": 2.0, "heartbeat_s": 0.3},
            "max_running": 4,
            "max_queued": 2,
            **changes,
        }
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def body(prompt: list[int], max_tokens: int, **more) -> dict:
    return {"model": "fake", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}


def stream_ids(url: str, prompt: list[int], max_tokens: int, on_chunk=lambda count: None, timeout_s=60) -> list[int]:
    ids: list[int] = []
    request = body(prompt, max_tokens, stream=True)
    with httpx.stream("POST", f"{url}/v1/completions", json=request, timeout=timeout_s) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text = "".join(choice["text"] for choice in chunk["choices"])
                ids += [int(word.removeprefix("t")) for word in text.split()]
                on_chunk(len(ids))
    return ids


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
