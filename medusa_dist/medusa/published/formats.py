"""Formats of published draft heads: which one a folder holds, and what is missing to serve those that are not.

Owns the recognition, by config.json and tensor names. Pure. Not here: reading (reader.py), the layouts
themselves (medusa/heads/published_heads.py, medusa/eagle3/config.py).
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.published_heads import recognise


class Format(Enum):
    """A form of draft heads, by its published name."""

    MEDUSA = "Medusa"
    EAGLE3 = "EAGLE-3"
    EAGLE = "EAGLE-1/2"
    P_EAGLE = "P-EAGLE"
    DFLASH = "DFlash"
    DSPARK = "DSpark"
    MTP = "MTP"
    HYDRA = "Hydra"
    MLP_SPECULATOR = "MLP speculator"
    LANGUAGE_MODEL = "a whole language model"


SERVED = (Format.MEDUSA, Format.EAGLE3)
_MISSING = {
    Format.EAGLE: "a layer that reads one hidden state of the base and predicts the next one",
    Format.P_EAGLE: "drafting all levels in one pass, with mask tokens (mask_hidden)",
    Format.DFLASH: "a block of several layers that is drafted in one pass, with keys and values of the tapped layers",
    Format.DSPARK: "a block of several layers that is drafted in one pass, and its Markov and confidence heads",
    Format.MTP: "a layer of the base's own kind that reads its last hidden state",
    Format.HYDRA: "one cell of its own per head; train-heads makes sequential heads, which are alike",
    Format.MLP_SPECULATOR: "one cell of its own per head; train-heads makes sequential heads, which are alike",
    Format.LANGUAGE_MODEL: "a second model that drafts; heads.source takes heads, not models",
}
_TYPES = {
    "eagle3": Format.EAGLE3,
    "eagle": Format.EAGLE,
    "hass": Format.EAGLE,
    "peagle": Format.P_EAGLE,
    "p_eagle": Format.P_EAGLE,
    "dflash": Format.DFLASH,
    "dspark": Format.DSPARK,
    "mtp": Format.MTP,
    "fastmtp": Format.MTP,
    "mlp_speculator": Format.MLP_SPECULATOR,
    "medusa": Format.MEDUSA,
}


def detect(config: Mapping[str, Any], names: Sequence[str]) -> Format:
    """The form of heads with this config.json ({} if there is none) and these tensors ([] if they are not known).

    Raises HeadsError if it is none that is known.
    """
    found = _by_config(config)
    if found in (None, Format.EAGLE3, Format.EAGLE) and names:
        found = _by_names(config, names) or found
    if found is None:
        some = ", ".join(sorted(names)[:3]) or "no tensors"
        raise HeadsError(f"heads: neither config.json nor the tensors ({some}) are of a known form: {_known()}")
    return found


def require_served(found: Format) -> None:
    """Raise HeadsError, with what is missing, for a form that is known and not served."""
    if found not in SERVED:
        raise HeadsError(
            f"heads: these are {found.value}, which is not served: it needs {_MISSING[found]}. Served are Medusa and "
            "EAGLE-3 heads, and what train-heads and convert-heads write"
        )


def _known() -> str:
    return ", ".join(form.value for form in Format if form is not Format.LANGUAGE_MODEL)


def _by_config(config: Mapping[str, Any]) -> Format | None:
    asked = config.get("speculators_model_type") or (config.get("speculators_config") or {}).get("algorithm")
    if asked is not None:
        if asked not in _TYPES:
            raise HeadsError(f"heads: config.json has speculators_model_type {asked!r}; known forms are {_known()}")
        return _TYPES[asked]
    if "dspark_config" in config:
        return Format.DSPARK
    if "dflash_config" in config:
        return Format.DFLASH
    if config.get("model_type") in _TYPES:
        return _TYPES[config["model_type"]]
    if "medusa_num_heads" in config or "medusa" in config:
        return Format.MEDUSA
    words = " ".join(map(str, config.get("architectures") or ())).lower()
    for word in ("dspark", "dflash", "peagle", "eagle3", "eagle", "mtp"):
        if word in words:
            return _TYPES[word]
    eagle = config.get("eagle_config")
    return Format.EAGLE3 if eagle is not None or "draft_vocab_size" in config else None


def _by_names(config: Mapping[str, Any], names: Sequence[str]) -> Format | None:
    plain = {name.removeprefix("model.") for name in names}
    if "mask_hidden" in plain:
        return Format.P_EAGLE
    if any(re.search(r"(^|\.)(mtp\.|mtp_layers\.|(eh_proj|enorm|hnorm)\.)", name) for name in plain):
        return Format.MTP
    layers = {found[1] for name in plain if (found := re.match(r"layers\.(\d+)\.", name))}
    if "fc.weight" in plain and ("layers.0.hidden_norm.weight" in plain or any("midlayer." in name for name in plain)):
        return Format.EAGLE3
    if "fc.weight" in plain and "hidden_norm.weight" in plain:
        return Format.DFLASH
    if "fc.weight" in plain and layers:
        return Format.EAGLE
    if any(re.match(r"(hydra|prefix_embeding)", name) for name in plain):
        return Format.HYDRA
    try:
        recognise(names)
    except HeadsError:
        pass
    else:
        return Format.MEDUSA
    whole = any(name.endswith("embed_tokens.weight") for name in plain) and len(layers) > 1
    return Format.LANGUAGE_MODEL if whole and not config.get("speculators_config") else None
