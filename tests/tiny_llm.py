"""A tiny model over bytes with a tokenizer and heads, for everything that goes from text to text."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from medusa_dist.medusa.heads_file import BaseModelFacts, HeadsDescription, HeadsFile, expected_shapes
from tests.model.tiny_models import configs
from tests.tiny_tokenizers import byte_tokenizer

TREE = [[r] for r in range(8)] + [[0, r] for r in range(4)]  # static, so that the clock has no say


def save_llm(folder: Path) -> Path:
    """A random llama over bytes, and in folder/heads two heads over its own output rows."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    config = configs()["llama"]
    config.vocab_size, config.max_position_embeddings, config.intermediate_size = len(tokenizer), 128, 64
    config.eos_token_id, config.initializer_range = tokenizer.eos_token_id, 0.15
    torch.manual_seed(2)
    LlamaForCausalLM(config).save_pretrained(folder)
    base = BaseModelFacts(name="bytes", fingerprint=None, hidden_size=config.hidden_size, vocab_size=len(tokenizer))
    about = HeadsDescription(form="hidden", num_heads=2, offsets=(1, 2), dtype="float32", base=base)
    HeadsFile(about, {n: 0.1 * torch.randn(s) for n, s in expected_shapes(about).items()}).save(folder / "heads")
    return folder
