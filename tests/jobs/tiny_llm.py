"""A whole LLM for the tools: a tiny random model that speaks bytes, with heads."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from medusa_dist.medusa.heads_file import BaseModelFacts, HeadsDescription, HeadsFile, expected_shapes
from tests.model.tiny_models import configs
from tests.tiny_tokenizers import byte_tokenizer


def save_llm(folder: Path) -> None:
    """Model and tokenizer in `folder`, two heads in folder/heads."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    config = configs()["llama"]
    config.vocab_size, config.max_position_embeddings, config.intermediate_size = len(tokenizer), 256, 64
    torch.manual_seed(2)
    LlamaForCausalLM(config).save_pretrained(folder)
    base = BaseModelFacts(name="bytes", fingerprint=None, hidden_size=config.hidden_size, vocab_size=len(tokenizer))
    about = HeadsDescription(form="hidden", num_heads=2, offsets=(1, 2), dtype="float32", base=base)
    HeadsFile(about, {n: 0.1 * torch.randn(s) for n, s in expected_shapes(about).items()}).save(folder / "heads")


def service_config(folder: Path, **args: object) -> str:
    """A Serve config of one application, as YAML."""
    lines = [f"      model: {folder}", "      dtype: float32", f"      heads: {{source: {folder / 'heads'}}}"]
    lines += [f"      {key}: {value}" for key, value in args.items()]
    head = "applications:\n  - name: tiny\n    import_path: medusa_dist.app:build_app\n    args:\n"
    return head + "\n".join(lines) + "\n"
