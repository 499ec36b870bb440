"""A tiny model over bytes with a tokenizer and heads, for everything that goes from text to text."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_heads import save_heads
from tests.support.tiny_models import configs
from tests.support.tiny_tokenizers import byte_tokenizer

TREE = [[r] for r in range(8)] + [[0, r] for r in range(4)]  # static, so that the clock has no say


def save_llm(
    folder: Path,
    max_model_len: int = 128,
    chat: bool = True,
    tokenizer: PreTrainedTokenizerFast | None = None,
    template: str | None = None,
) -> Path:
    """A random llama over bytes, and in folder/heads two heads over its own output rows.

    chat: with a template. tokenizer: another one than the byte tokenizer. template: another one than its own.
    """
    tokenizer = tokenizer or byte_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    elif template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = configs()["llama"]
    config.vocab_size, config.max_position_embeddings, config.intermediate_size = len(tokenizer), max_model_len, 64
    config.eos_token_id, config.initializer_range = tokenizer.eos_token_id, 0.15
    torch.manual_seed(2)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_heads(folder / "heads", config.hidden_size, len(tokenizer), 0.1, form="hidden", num_heads=2)
    return folder
