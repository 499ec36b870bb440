"""Peers of `bench` in this process: transformers, llama.cpp, and our own engine without quantization.

Owns starting and calling them. Not here: vLLM (peers.py), the comparison (bench.py).
All decode greedily, and continue past end-of-sequence tokens.
"""

import importlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams

Prompts = Sequence[Sequence[int]]
_UNKNOWN = -1  # a token of an answer that a peer gives as text only


@dataclass(frozen=True)
class Answers:
    """A peer's answers to a batch of prompts, and the time for the whole batch."""

    tokens: list[tuple[int, ...]]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return sum(len(tokens) for tokens in self.tokens) / self.seconds


class TransformersPeer:
    """`generate` of a plain transformers model, one prompt at a time: the baseline without a server."""

    batches: tuple[int, ...] = (1,)

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.name = f"transformers {transformers.__version__}"
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        # The model's own config would stop at the end-of-sequence token.
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        self._device = device

    @torch.inference_mode()
    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode the prompts one after another."""
        tokens: list[tuple[int, ...]] = []
        begin = time.perf_counter()
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=self._device)
            out = self._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens)
            tokens.append(tuple(out[0, len(prompt) :].tolist()))
        return Answers(tokens, time.perf_counter() - begin)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None


class UnquantizedPeer:
    """Our own engine without `quantization`, with the same drafts: what 8-bit weights are worth."""

    def __init__(self, quantized: LLM, batches: tuple[int, ...]) -> None:
        """Raises ConfigError if the engine to compare with is not quantized."""
        config = quantized.config
        if config.quantization == "none":
            raise ConfigError("--peer unquantized compares with --quantization int8; add it, or remove the peer")
        options = config.model_dump(exclude_unset=True) | {"quantization": "none"}
        self._llm = LLM(options.pop("model"), **options)
        self.name, self.batches = f"medusa_dist, {self._llm.facts['dtype']} weights", batches

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts together, from an empty prefix cache."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        self._llm.engine.reset_prefix_cache()
        begin = time.perf_counter()
        outputs = self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return Answers([tuple(each.outputs[0].token_ids) for each in outputs], seconds)

    def close(self) -> None:
        """Stop its engine."""
        self._llm.shutdown()


class LlamaCppPeer:
    """llama.cpp's server in this process, without HTTP, by the package xllamacpp; requests are sent by threads.

    Its answers are text, so their tokens are what our tokenizer makes of it.
    """

    def __init__(self, gguf: Path, llm: LLM, batches: tuple[int, ...]) -> None:
        """gguf: the same model in any of llama.cpp's types. Raises ConfigError without the package or the file."""
        if not gguf.is_file():
            raise ConfigError(f"--peer-gguf: there is no file {gguf}")
        try:
            package: Any = importlib.import_module("xllamacpp")
        except ImportError:
            raise ConfigError("--peer llama.cpp requires the package xllamacpp: pip install xllamacpp") from None
        self.name, self.batches = f"llama.cpp {package.__version__} ({gguf.name})", batches
        self._tokenizer = llm.tokenizer
        params = package.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel = max(batches)
        params.n_ctx = llm.facts["max_model_len"] * params.n_parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        self._server = package.Server(params)
        self._threads = ThreadPoolExecutor(max(batches))

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts together, without its prompt cache."""
        begin = time.perf_counter()
        texts = list(self._threads.map(lambda prompt: self._answer(prompt, max_tokens), prompts))
        seconds = time.perf_counter() - begin
        ids = [self._tokenizer.encode(text, add_special_tokens=False)[:max_tokens] for text in texts]
        return Answers([(*found, *[_UNKNOWN] * (max_tokens - len(found))) for found in ids], seconds)

    def _answer(self, prompt: Sequence[int], max_tokens: int) -> str:
        found: Any = self._server.handle_completions(
            {
                **{"prompt": list(prompt), "n_predict": max_tokens, "temperature": 0.0},
                **{"ignore_eos": True, "cache_prompt": False},
            }
        )
        if not isinstance(found, dict) or "choices" not in found:
            raise EngineError(f"llama.cpp did not answer: {found}")
        if found["usage"]["completion_tokens"] != max_tokens:
            raise EngineError(f"llama.cpp gave {found['usage']['completion_tokens']} tokens instead of {max_tokens}")
        text: str = found["choices"][0]["text"]
        return text

    def close(self) -> None:
        """Stop it."""
        self._threads.shutdown()
        self._server = None
