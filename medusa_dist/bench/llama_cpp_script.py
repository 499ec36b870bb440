"""Script for a process of its own: llama.cpp's server without HTTP, to compare with. Imports no medusa_dist.

Owns the engine and its protocol, lines of JSON on standard input and output. Not here: the caller (peers.py).
First line in: gguf, num_threads, max_model_len, max_num_seqs; out: version. Each further line in: prompts (token ids),
max_tokens; out: seconds, texts. Exits at the end of its input.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any


def main() -> None:
    """Decode greedily without prompt cache, exactly max_tokens tokens per answer; otherwise llama.cpp's defaults."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all other output goes to standard error
    package: Any = import_module("xllamacpp")
    settings = json.loads(sys.stdin.readline())
    params = package.CommonParams()
    params.model.path, params.n_parallel = settings["gguf"], settings["max_num_seqs"]
    params.n_ctx = settings["max_model_len"] * params.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["num_threads"]
    server = package.Server(params)
    _say(answers, {"version": package.__version__})
    with ThreadPoolExecutor(params.n_parallel) as threads:
        for line in sys.stdin:
            asked = json.loads(line)
            fields = {"n_predict": asked["max_tokens"], "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
            requests = [{"prompt": ids, **fields} for ids in asked["prompts"]]
            begin = time.perf_counter()
            found = list(threads.map(server.handle_completions, requests))
            seconds = time.perf_counter() - begin
            _say(answers, {"seconds": seconds, "texts": [_text(each, asked["max_tokens"]) for each in found]})


def _text(found: Any, max_tokens: int) -> str:
    if not isinstance(found, dict) or "choices" not in found:
        sys.exit(f"llama.cpp did not answer: {found}")
    count = found["usage"]["completion_tokens"]
    if count != max_tokens:
        sys.exit(f"llama.cpp gave {count} tokens instead of {max_tokens}")
    return str(found["choices"][0]["text"])


def _say(answers: Any, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
