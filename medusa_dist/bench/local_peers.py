"""Peers of `bench` in this process: transformers, and our own engine without quantization.

Owns starting and calling them. Not here: those in a process of their own (peers.py), the comparison (bench.py).
All decode greedily, and continue past end-of-sequence tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from medusa_dist.errors import ConfigError
from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams

Prompts = Sequence[Sequence[int]]


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
