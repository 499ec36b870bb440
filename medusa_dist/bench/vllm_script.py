"""Script for vLLM's Python: one offline vLLM engine for a comparison. Imports no medusa_dist.

Owns the engine and its protocol, lines of JSON on standard input and output. Not here: the caller (peers.py).
First line in: model, dtype, max_model_len, max_num_seqs; out: version. Each further line in: prompts (token ids),
max_tokens; out: seconds, tokens. Exits at the end of its input.
"""

import json
import os
import sys
import time
from importlib import import_module
from typing import Any


def main() -> None:
    """Decode greedily without prefix cache, exactly max_tokens tokens per answer; otherwise vLLM's defaults."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all other output goes to standard error
    vllm = import_module("vllm")
    llm = vllm.LLM(**json.loads(sys.stdin.readline()), enable_prefix_caching=False)
    _say(answers, {"version": vllm.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        params = vllm.SamplingParams(temperature=0.0, max_tokens=asked["max_tokens"], ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        _say(answers, {"seconds": seconds, "tokens": [list(o.outputs[0].token_ids) for o in outputs]})


def _say(answers: Any, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":  # vLLM's child processes import this file again
    main()
