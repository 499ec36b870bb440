"""A model that counts, and heads that guess a fixed distance ahead."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile, expected_shapes

VOCAB, HIDDEN, HEADS = 31, 32, 3


def shifted(by: int) -> Tensor:
    """[V, H] output rows: token v answers to the one-hot state of token v - by."""
    rows = torch.zeros(VOCAB, HIDDEN)
    for v in range(VOCAB):
        rows[v, (v - by) % VOCAB] = 1.0
    return rows


def save_counting_model(folder: Path, output: Tensor) -> None:
    """No attention, no MLP: the last hidden state is the token itself, one-hot; `output` [V, H] is the lm_head."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(VOCAB, HIDDEN))
    model.lm_head.weight.copy_(output)
    model.save_pretrained(folder)


def save_heads(folder: Path, outputs: list[Tensor], form: str = "hidden", draft_vocab: Tensor | None = None) -> None:
    """Heads with the given output rows; their blocks pass on the hidden state, or the embedding if they see it."""
    about = HeadsDescription(
        form=form,
        embedding_scale=0.5,
        num_heads=HEADS,
        offsets=(1, 2, 3),
        bias=False,
        lm_head="own",
        dtype="float32",
        draft_vocab_size=None if draft_vocab is None else draft_vocab.numel(),
        base=BaseModelFacts(name="counting", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB),
    )
    tensors = {name: torch.zeros(shape) for name, shape in expected_shapes(about).items()}
    for k, rows in enumerate(outputs):
        tensors[f"heads.{k}.lm_head.weight"] = rows
        if form == "hidden+embedding":
            tensors[f"heads.{k}.blocks.0.weight"] = torch.cat([torch.zeros(HIDDEN, HIDDEN), 60 * torch.eye(HIDDEN)], 1)
    if draft_vocab is not None:
        tensors["draft_vocab"] = draft_vocab.int()
    HeadsFile(about, tensors).save(folder)
