"""Published EAGLE-3 heads: their tensors, checked and brought to one set of names.

Owns the names and shapes. Not here: the meaning of config.json (config.py), the module that runs them (layer.py),
reading of files (medusa/published/reader.py).
Official heads, SpecForge's and ModelOpt's call the layer midlayer.*, speculators' layers.0.*. Ours are those of
speculators; H is the heads' width, W the base's, T the number of tapped layers:
  fc.weight [H, T W]; layers.0: hidden_norm, input_layernorm, post_attention_layernorm [H], self_attn.q_proj, k_proj,
  v_proj [., 2 H], self_attn.o_proj, q_norm and k_norm (Qwen3 type), mlp.gate_proj, up_proj, down_proj; norm [H];
  lm_head [D, H]; embed_tokens [V, H] (else the base's); d2t [D]: token id minus row; t2d [V]: which tokens are known;
  input_norm [T W] (norm_before_fc) or fc_norm.0, .1, ... [W] (fc_norm)
Sources: SafeAILab/EAGLE cb7e084 (cnets), vllm-project/speculators c05b95b, sgl-project/SpecForge a6b6b02, llama_eagle3
of vLLM and SGLang.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.eagle3.config import Eagle3Config

LAYER = "layers.0."
NUM_LEVELS = 5  # tokens ahead that are drafted; the heads are trained for three to seven
_OF_BASE = re.compile(r"verifier_(norm|lm_head)\.weight")  # copies of the base's, for training
_BIAS = re.compile(r"fc|layers\.0\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")


def eagle3_names(theirs: list[str]) -> dict[str, str]:
    """Our name of each tensor -> theirs; names of other things are kept as they are."""
    found: dict[str, str] = {}
    for name in theirs:
        mine = name.removeprefix("model.").replace("midlayer.", LAYER, 1)
        if _OF_BASE.fullmatch(mine):
            continue
        if mine in found:
            raise HeadsError(f"heads: {found[mine]} and {name} are both {mine}")
        found[mine] = name
    return found


class Eagle3File:
    """EAGLE-3 heads in memory: what their config says, and tensors under our names, without d2t and t2d."""

    def __init__(self, config: Eagle3Config, tensors: Mapping[str, Tensor]) -> None:
        """tensors: under our names. Raises HeadsError for tensors that are missing, too many or of another shape."""
        self.config = config
        self.tensors = {name: t for name, t in tensors.items() if name not in ("d2t", "t2d")}
        _check_tensors(config, tensors)
        self.draft_vocab = _draft_vocab(config, tensors)

    @property
    def made_for(self) -> str:
        """The base's name, for display."""
        return self.config.made_for or "a base model that config.json does not name"

    @property
    def fingerprint(self) -> None:
        """Published heads record none."""

    @property
    def dtype(self) -> str:
        """Of the stored tensors."""
        return str(self.tensors["fc.weight"].dtype).removeprefix("torch.")

    @property
    def num_levels(self) -> int:
        """How many tokens ahead they draft."""
        return NUM_LEVELS

    @property
    def num_known(self) -> int:
        """Tokens that they can draft."""
        return self.config.draft_vocab_size

    def aux_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers of a base with num_layers layers that they read."""
        return self.config.layers_of(num_layers)

    def check_base(self, hidden_size: int, vocab_size: int, _fingerprint: str | None, _allow_other: bool) -> None:
        """Raise HeadsError if they cannot draft for the model. Published heads name no fingerprint."""
        about, borrows = self.config, "embed_tokens.weight" not in self.tensors or "lm_head.weight" not in self.tensors
        if borrows and about.hidden_size != hidden_size:
            raise HeadsError(
                f"heads: {about.hidden_size} wide, so the model's embedding and lm_head, {hidden_size} wide, cannot "
                "stand in for the missing embed_tokens.weight or lm_head.weight"
            )
        if about.vocab_size != vocab_size:
            raise HeadsError(
                f"heads: made for {self.made_for!r} with vocabulary {about.vocab_size}, but the model has {vocab_size}"
            )

    def check_layers(self, num_layers: int, layer_width: int) -> None:
        """Raise HeadsError if the model lacks a layer that they read, or its layers have another width."""
        layers = self.aux_layers(num_layers)
        if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < num_layers:
            raise HeadsError(
                f"heads: they read the outputs of layers {list(layers)}, but the model's are 0 to {num_layers - 1}"
            )
        if self.config.target_hidden_size != layer_width:
            raise HeadsError(
                f"heads: made for {self.made_for!r} with hidden size {self.config.target_hidden_size}, but the model "
                f"has {layer_width}"
            )


def eagle3_shapes(config: Eagle3Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that these heads have, embed_tokens and biases included; d2t and t2d are not."""
    hidden, taps, inner = config.hidden_size, config.num_taps * config.target_hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, taps),
        f"{LAYER}self_attn.q_proj.weight": (queries, 2 * hidden),
        f"{LAYER}self_attn.k_proj.weight": (keys, 2 * hidden),
        f"{LAYER}self_attn.v_proj.weight": (keys, 2 * hidden),
        f"{LAYER}self_attn.o_proj.weight": (hidden, queries),
        f"{LAYER}mlp.gate_proj.weight": (inner, hidden),
        f"{LAYER}mlp.up_proj.weight": (inner, hidden),
        f"{LAYER}mlp.down_proj.weight": (hidden, inner),
        "lm_head.weight": (config.draft_vocab_size, hidden),
        "embed_tokens.weight": (config.vocab_size, hidden),
    }
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items() if _BIAS.match(name)}
    shapes |= {f"{LAYER}{norm}.weight": (hidden,) for norm in ("hidden_norm", "input_layernorm")}
    shapes |= {f"{LAYER}post_attention_layernorm.weight": (hidden,), "norm.weight": (hidden,)}
    if config.qk_norm:
        shapes |= {f"{LAYER}self_attn.{norm}.weight": (config.head_dim,) for norm in ("q_norm", "k_norm")}
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (taps,)
    if config.fc_norm:
        shapes |= {f"fc_norm.{tap}.weight": (config.target_hidden_size,) for tap in range(config.num_taps)}
    return shapes


def _check_tensors(config: Eagle3Config, tensors: Mapping[str, Tensor]) -> None:
    expected = eagle3_shapes(config)
    optional = {name for name in expected if name.endswith(".bias")} | {"embed_tokens.weight"}
    if config.draft_vocab_size == config.vocab_size:
        optional.add("lm_head.weight")  # the base's then
    missing = [name for name in expected if name not in tensors and name not in optional]
    if config.draft_vocab_size < config.vocab_size and "d2t" not in tensors:
        missing.append("d2t")
    if missing:
        raise HeadsError(f"heads: EAGLE-3 heads without the tensor{'s' * (len(missing) > 1)} {', '.join(missing)}")
    extra = sorted(set(tensors) - set(expected) - {"d2t", "t2d"})
    if extra:
        raise HeadsError(f"heads: EAGLE-3 heads have no {', '.join(extra[:5])}; is it another form?")
    for name, tensor in tensors.items():
        shape = expected.get(name, (config.draft_vocab_size if name == "d2t" else config.vocab_size,))
        if tuple(tensor.shape) != shape:
            raise HeadsError(f"heads: tensor {name} has shape {tuple(tensor.shape)}, but config.json implies {shape}")
        if (name in expected and not tensor.is_floating_point()) or (tensor.element_size() == 1 and name != "t2d"):
            raise HeadsError(f"heads: tensor {name} is {tensor.dtype}; quantized EAGLE-3 heads are not served")


def _draft_vocab(config: Eagle3Config, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """[D] int64 token id of each row of the lm_head, or None where it is the row's number."""
    offsets = tensors.get("d2t")
    if offsets is None or offsets.is_meta:
        return None
    ids = offsets.long() + torch.arange(offsets.numel())
    if int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size:
        row = int(((ids < 0) | (ids >= config.vocab_size)).nonzero()[0])
        raise HeadsError(
            f"heads: d2t maps row {row} to token {int(ids[row])}, outside the vocabulary of {config.vocab_size}"
        )
    if len(set(ids.tolist())) != ids.numel():
        raise HeadsError("heads: d2t maps two rows to one token")
    known = tensors.get("t2d")
    if known is not None and not known.is_meta and (int(known.sum()) != ids.numel() or not bool(known[ids].all())):
        raise HeadsError("heads: t2d and d2t disagree about which tokens are known")
    return ids
