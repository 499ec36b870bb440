"""config.json of published EAGLE-3 heads, in the forms of three projects.

Owns its meaning, and the refusal of variants that compute something else. Not here: the tensors (checkpoint.py).
  official, SpecForge, ModelOpt: that of a Llama, with draft_vocab_size
  speculators:                   speculators_model_type, and the layer's own config in transformer_layer_config
Tapped layers: speculators and vLLM count hidden states, so k is the output of our layer k - 1; eagle_config of
SpecForge and ModelOpt counts layers, as we do. The default is 2, n // 2 and n - 3 hidden states of a base of n layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.rotary import Rotary

_TAPS = 3  # default number of tapped layers


@dataclass(frozen=True)
class Eagle3Config:
    """What config.json says. target_hidden_size: the base's width. vocab_size: the base's; draft_vocab_size: tokens
    that the heads know. tapped_layers: layers of the base counted from 0, None: the default. window: tokens that the
    layer sees, None: all. made_for: the base's name, for display."""

    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    eps: float
    rotary: Rotary
    qk_norm: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    logit_scale: float = 1.0
    tapped_layers: tuple[int, ...] | None = None
    window: int | None = None
    made_for: str | None = None

    @property
    def num_taps(self) -> int:
        """Number of tapped layers."""
        return _TAPS if self.tapped_layers is None else len(self.tapped_layers)

    def layers_of(self, num_layers: int) -> tuple[int, ...]:
        """The tapped layers of a base with num_layers layers."""
        default = 1, num_layers // 2 - 1, num_layers - 4
        return default if self.tapped_layers is None else self.tapped_layers


def parse_eagle3_config(config: Mapping[str, Any]) -> Eagle3Config:
    """Read config.json. Raises HeadsError for what is missing, and for variants that are not served."""
    ours = "speculators_model_type" in config or "transformer_layer_config" in config
    layer: Mapping[str, Any] = config.get("transformer_layer_config") or {} if ours else config
    eagle: Mapping[str, Any] = config.get("eagle_config") or {}
    _refuse_variants(config, layer, eagle)

    def count(key: str, default: int | None = None, of: Mapping[str, Any] = layer) -> int:
        value = of.get(key) if of.get(key) is not None else default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            where = "transformer_layer_config." if ours and of is layer else ""
            raise HeadsError(f"heads: config.json must have {where}{key} as a positive number, and has {value!r}")
        return value

    if ours and "norm_before_residual" not in config:
        raise HeadsError("heads: config.json lacks norm_before_residual, without which the layer is not known")
    hidden, heads, vocab = count("hidden_size"), count("num_attention_heads"), count("vocab_size")
    made_for = ((config.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path")
    flags = {key: bool(config.get(key)) for key in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}
    if flags["norm_before_fc"] and flags["fc_norm"]:
        raise HeadsError("heads: config.json sets norm_before_fc and fc_norm, which exclude each other")
    return Eagle3Config(
        hidden_size=hidden,
        target_hidden_size=count("target_hidden_size", hidden, config),
        intermediate_size=count("intermediate_size"),
        num_heads=heads,
        num_kv_heads=count("num_key_value_heads", heads),
        head_dim=count("head_dim", hidden // heads),
        vocab_size=vocab,
        draft_vocab_size=count("draft_vocab_size", vocab, config),
        eps=float(layer.get("rms_norm_eps") or 1e-6),
        rotary=Rotary.of_config(layer),
        qk_norm=layer.get("model_type") == "qwen3",
        logit_scale=float(config.get("logit_scale") or 1.0),
        tapped_layers=_tapped(config, eagle),
        window=_window(layer),
        made_for=None if made_for is None else str(made_for),
        **flags,
    )


def _tapped(config: Mapping[str, Any], eagle: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Tapped layers in our counting, or None for the default."""
    key = "eagle_aux_hidden_state_layer_ids"
    states, layers = config.get(key), eagle.get(key)
    asked = states or layers
    if not asked:
        return None
    if not isinstance(asked, list) or not all(isinstance(one, int) for one in asked):
        raise HeadsError(f"heads: config.json has {key} {asked!r}, which is not a list of layers")
    tapped = tuple(one - 1 for one in asked) if states else tuple(asked)
    if list(tapped) != sorted(set(tapped)) or tapped[0] < 0:
        what = "the embedding, hidden state 0, cannot be tapped" if -1 in tapped else "they must ascend"
        raise HeadsError(f"heads: config.json has {key} {asked}: {what}")
    return tapped


def _window(layer: Mapping[str, Any]) -> int | None:
    kinds = layer.get("layer_types")
    slides = kinds[:1] == ["sliding_attention"] if isinstance(kinds, list) else bool(layer.get("use_sliding_window"))
    return int(layer["sliding_window"]) if slides and layer.get("sliding_window") else None


def _refuse_variants(config: Mapping[str, Any], layer: Mapping[str, Any], eagle: Mapping[str, Any]) -> None:
    """Raise HeadsError for a variant that computes something else."""
    expected = (
        ("num_hidden_layers", layer.get("num_hidden_layers", 1), 1),
        ("hidden_act", layer.get("hidden_act", "silu"), "silu"),
        ("quantization_config", config.get("quantization_config"), None),
        ("eagle_config.use_aux_hidden_state", eagle.get("use_aux_hidden_state", True), True),
        ("eagle_config.use_last_layernorm", eagle.get("use_last_layernorm", True), True),
        (
            "eagle_config.use_input_layernorm_in_first_layer",
            eagle.get("use_input_layernorm_in_first_layer", True),
            True,
        ),
        ("eagle_config.parallel_draft_step", eagle.get("parallel_draft_step", 1), 1),
    )
    for key, found, served in expected:
        if found != served:
            told = "a quantized form" if key == "quantization_config" else repr(found)
            raise HeadsError(f"heads: EAGLE-3 heads with {key}: {told} are not served; served is {served!r}")
    if layer.get("model_type", "llama") not in ("llama", "qwen3", "qwen2", "mistral"):
        raise HeadsError(
            f"heads: EAGLE-3 heads with a layer of type {layer['model_type']!r} are not served; those served are llama "
            "and qwen3"
        )
