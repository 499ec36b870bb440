"""Head files made on the fly."""

from pathlib import Path

import torch
from torch import Tensor

from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.heads_file import HeadsFile, expected_shapes

HIDDEN, VOCAB = 13, 31


def describe(num_heads: int = 3, **fields: object) -> HeadsDescription:
    """A description; `fields` override or add keys."""
    base = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB)
    keys: dict[str, object] = {
        "form": "hidden",
        "num_heads": num_heads,
        "offsets": tuple(range(1, num_heads + 1)),
        "dtype": "float32",
        "base": base,
    }
    return HeadsDescription.model_validate(keys | fields)


def tensors_for(description: HeadsDescription, scale: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of the shapes the description promises."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: scale * torch.randn(shape, generator=generator)
        for name, shape in expected_shapes(description).items()
        if name != "draft_vocab"
    }
    size = description.draft_vocab_size
    if size is not None:
        ids = torch.randperm(description.base.vocab_size, generator=generator)[:size]
        made["draft_vocab"] = ids.sort().values.int()
    return made


def random_heads(seed: int = 0, scale: float = 0.5, **fields: object) -> HeadsFile:
    description = describe(**fields)
    return HeadsFile(description, tensors_for(description, scale, seed))


def save_heads(
    folder: Path, hidden_size: int, vocab_size: int, scale: float = 0.3, seed: int = 3, **fields: object
) -> None:
    """Three heads, unless `fields` say otherwise, over a model's own output rows: their blocks are small and random, so
    each guesses what the model said a place before."""
    name, fingerprint = fields.pop("name", "tiny"), fields.pop("fingerprint", None)
    base = BaseModelFacts(name=name, fingerprint=fingerprint, hidden_size=hidden_size, vocab_size=vocab_size)
    about = describe(**({"form": "hidden+embedding", "num_heads": 3, "base": base} | fields))
    HeadsFile(about, tensors_for(about, scale, seed)).save(folder)
