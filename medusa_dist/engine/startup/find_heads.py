"""Finds the heads of a model, and builds the drafters on rank 0.

Owns where heads are looked up, and which drafters there are. Not here: their formats (medusa/published/reader.py),
the check before loading (bootstrap.py).
"""

import logging
from pathlib import Path
from typing import Any

from medusa_dist.config import HEADS, LOOKUP, Config, Paths, SpeculationConfig
from medusa_dist.engine.drafters.context_drafter import ContextDrafter
from medusa_dist.engine.drafters.drafter import Drafter
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.drafters.lookup_drafter import LookupDrafter
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.eagle3.layer import Eagle3
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.heads.prefix_layer import PrefixLayer
from medusa_dist.medusa.heads.sequential import build_heads, drafting_dtype
from medusa_dist.medusa.published.reader import WANTED, AnyHeads, read_any_heads
from medusa_dist.model.load import ShardedModel, load_full_rows
from medusa_dist.model.source.resolve_model import hub_folder
from medusa_dist.model.support_check import output_width

logger = logging.getLogger(__name__)

_SHIPPED_HEADS = {"demo:smollm2-135m": "smollm2-135m"}


def find_heads(config: Config) -> Path | None:
    """The folder of the heads: as configured, or the demo model's own. None: no heads draft."""
    if config.speculation.mode == "off" or HEADS not in config.speculation.drafters:
        if config.heads.source is not None:
            logger.warning("heads.source is not used: speculation.mode is off, or its drafters lack heads")
        return None
    if config.heads.source is not None:
        local = Path(config.heads.source).expanduser()
        return local if local.is_dir() else hub_folder(config.heads.source, None, WANTED)
    shipped = _SHIPPED_HEADS.get(config.model)
    return None if shipped is None else Path(__file__).parents[2] / "data" / "heads" / shipped


def read_source(folder: Path, name: str, base: Any, shapes_only: bool = False) -> AnyHeads:
    """The heads in a folder, in any form that is served. name, base: the model's name and config, for heads that record
    neither. Raises HeadsError."""
    facts = BaseModelFacts(name=name, fingerprint=None, hidden_size=output_width(base), vocab_size=int(base.vocab_size))
    return read_any_heads(folder, facts, shapes_only)


def make_drafters(config: SpeculationConfig, heads: AnyHeads | None, model: ShardedModel) -> dict[str, Drafter]:
    """The drafters of rank 0, in the order in which their guesses are mixed (medusa/trees/merged.py)."""
    made: dict[str, Drafter] = {}
    if config.mode == "auto" and LOOKUP in config.drafters:
        made[LOOKUP] = LookupDrafter(config.max_nodes)
    if heads is not None:
        made[HEADS] = _head_drafter(heads, model, config.tree)
    return made


def _head_drafter(file: AnyHeads, model: ShardedModel, static: Paths | None = None) -> HeadDrafter | ContextDrafter:
    """The heads on rank 0, with the output rows and input embedding they need, read by slices from the checkpoint.

    static: the only tree they will draft for, if there is one.
    """
    dtype = drafting_dtype(file.dtype, model.dtype, model.device)
    if isinstance(file, Eagle3File):
        own = file.tensors.get("embed_tokens.weight")
        embedding = load_full_rows(model, "input") if own is None else own
        rows = None if "lm_head.weight" in file.tensors else load_full_rows(model, "output", file.draft_vocab)
        eagle = Eagle3(file, rows, dtype, model.device)
        return ContextDrafter(eagle, embedding.to(device=model.device, dtype=dtype), model.vocab_size, static)
    shared = file.description.lm_head == "shared"
    rows = load_full_rows(model, "output", file.draft_vocab) if shared else None
    heads = build_heads(file, rows, dtype, model.device)
    table = load_full_rows(model, "input") if heads.needs_embedding else None
    prefix = None if file.description.prefix is None else PrefixLayer(file, dtype, model.device)
    return HeadDrafter(heads, table, model.vocab_size, static, prefix)
