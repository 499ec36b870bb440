"""SamplingParams: how the tokens of a request are chosen.

Owns the fields and their checks. Not here: the HTTP fields they come from (api/schema/requests.py). No torch.
"""

from dataclasses import dataclass
from typing import Literal

from medusa_dist.beam_fields import check_beam_fields
from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Names and meanings follow vLLM's class of the same name.

    temperature: 0 is greedy. top_p, top_k (0 = all) and min_p cut the distribution after temperature and penalties.
    max_tokens: None = as many as the context holds, 0 = none, the prompt alone is computed (and scored). seed: None =
    drawn, and reported in the output.
    stop: strings that end the text and are not part of it. stop_token_ids: ids that end it, likewise.
    logprobs: None = none, k = the chosen token's log-probability and those of the k most likely tokens, under the
    base model's own distribution before temperature, penalties and filters.
    prompt_logprobs: None = none, k = the same for the tokens of the prompt, in the first output.
    speculation: False decodes this request without drafted tokens; the output is the same by construction.
    acceptance: "exact", or "typical": lossy, drafted tokens survive that are likely enough by typical_epsilon and
    typical_delta (medusa/trees/accept.py); the output then depends on what was drafted.
    beam_width: None = no beam search; W = the W best hypotheses, as transformers finds them with num_beams W, and with
    its length_penalty and early_stopping (docs/beam_search.md).
    grammar: what the whole output must look like; it ends where the grammar leaves nothing to add, whatever min_tokens
    and ignore_eos say. stop, stop_token_ids and max_tokens may end it before.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    speculation: bool = True
    acceptance: Literal["exact", "typical"] = "exact"
    typical_epsilon: float = 0.09
    typical_delta: float = 0.3
    beam_width: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        bias = self.logit_bias
        pairs = bias.items() if isinstance(bias, dict) else bias or ()
        object.__setattr__(self, "logit_bias", tuple(sorted((int(i), float(b)) for i, b in pairs)))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} must be between {low:g} and {high:g}, got {value!r}", name)
        if any(not text for text in self.stop):
            raise RequestError("stop must not contain an empty string", "stop")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens")
        self._check_acceptance()
        check_beam_fields(self)
        if self.beam_width is not None:  # it may have been left out, and means nothing here
            object.__setattr__(self, "temperature", 0.0)

    def _check_acceptance(self) -> None:
        if self.acceptance not in ("exact", "typical"):
            raise RequestError(f'acceptance must be "exact" or "typical", got {self.acceptance!r}', "acceptance")
        if self.acceptance == "exact":
            for name, default in (("typical_epsilon", 0.09), ("typical_delta", 0.3)):
                if getattr(self, name) != default:
                    raise RequestError(f'{name} is a bound of acceptance "typical"; ask for that, too', name)
        elif self.temperature == 0.0:
            raise RequestError("at temperature 0 typical acceptance is the exact one; leave it out", "acceptance")
        elif not self.speculation:
            raise RequestError("without speculation nothing is drafted that could be accepted", "acceptance")

    @property
    def needs_full_logits(self) -> bool:
        """True if the choice needs more than each vocabulary shard's own argmax of logits / T + noise."""
        return (
            self.logprobs is not None
            or self.acceptance == "typical"
            or self.beam_width is not None
            or self.top_p < 1.0
            or self.top_k > 0
            or self.min_p > 0.0
            or self.min_tokens > 0
            or bool(self.logit_bias)
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
            or self.grammar is not None
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 0, 2**31),
    ("min_tokens", 0, 2**31),
    ("temperature", 0.0, 100.0),
    ("top_p", 1e-9, 1.0),
    ("top_k", 0, 2**31),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 1e-3, 100.0),
    ("seed", -(2**63), 2**63 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
    ("typical_epsilon", 1e-9, 1.0),
    ("typical_delta", 1e-9, 10.0),
)
