"""Finds the heads of a model, and builds the drafters on rank 0.

Owns where heads are looked up, and which drafters there are. Not here: the file format (medusa/heads/heads_file.py),
the check before loading (bootstrap.py).
"""

from pathlib import Path

from medusa_dist.config import HEADS, LOOKUP, Config, Paths, SpeculationConfig
from medusa_dist.engine.spec.drafter import Drafter
from medusa_dist.engine.spec.head_drafter import HeadDrafter
from medusa_dist.engine.spec.lookup_drafter import LookupDrafter
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.sequential import build_heads, drafting_dtype
from medusa_dist.model.load import ShardedModel, load_full_rows
from medusa_dist.model.source.resolve_model import resolve_source

_SHIPPED_HEADS = {"demo:smollm2-135m": "smollm2-135m"}


def find_heads(config: Config) -> Path | None:
    """The folder of the heads: as configured, or the demo model's own. None: no heads draft."""
    if config.speculation.mode == "off" or HEADS not in config.speculation.drafters:
        return None
    if config.heads.source is not None:
        local = Path(config.heads.source).expanduser()
        return local if local.is_dir() else resolve_source(config.heads.source)
    shipped = _SHIPPED_HEADS.get(config.model)
    return None if shipped is None else Path(__file__).parents[2] / "data" / "heads" / shipped


def make_drafters(config: SpeculationConfig, heads: HeadsFile | None, model: ShardedModel) -> dict[str, Drafter]:
    """The drafters of rank 0, in the order in which their guesses are mixed (medusa/trees/merged.py)."""
    made: dict[str, Drafter] = {}
    if config.mode == "auto" and LOOKUP in config.drafters:
        made[LOOKUP] = LookupDrafter(config.max_nodes)
    if heads is not None:
        made[HEADS] = _head_drafter(heads, model, config.tree)
    return made


def _head_drafter(file: HeadsFile, model: ShardedModel, static: Paths | None) -> HeadDrafter:
    """The heads on rank 0, with the output rows and input embedding they need, read by slices from the checkpoint.

    static: the only tree they will draft for, if there is one.
    """
    shared = file.description.lm_head == "shared"
    rows = load_full_rows(model, "output", file.draft_vocab) if shared else None
    heads = build_heads(file, rows, drafting_dtype(file, model.dtype, model.device), model.device)
    embedding = load_full_rows(model, "input") if heads.needs_embedding else None
    return HeadDrafter(heads, embedding, model.vocab_size, static)
