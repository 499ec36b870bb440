"""SamplingParams: how the output tokens of a request are chosen.

Owns the fields and their checks. Not here: the HTTP fields (api/schema/requests.py), the table of defaults and ranges
(sampling_fields.py). No torch.
"""

from dataclasses import dataclass
from typing import Literal

from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar
from medusa_dist.sampling_fields import FIELDS, check_beam_fields, check_ranges, default, needs_full_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How output tokens are chosen. Follows vLLM's class of the same name.

    temperature: 0 is greedy. top_p, top_k (0 = all) and min_p filter the distribution after temperature and penalties.
    max_tokens: None = up to the context length, 0 = compute (and score) only the prompt. seed: None = random, reported
    in the output.
    stop: strings that end the output and are not part of it. stop_token_ids: the same for token ids.
    logprobs: None = none, k = the log-probability of the chosen token and of the k most likely tokens, under the base
    model's own distribution before temperature, penalties and filters.
    prompt_logprobs: None = none, k = the same for the prompt tokens, in the first output.
    speculation: False decodes this request without draft tokens; the output is the same.
    acceptance: "exact", or "typical" (lossy): draft tokens that are likely enough by typical_epsilon and typical_delta
    are accepted (medusa/trees/accept.py), so the output depends on the drafts.
    beam_width: None = no beam search; W = the W best hypotheses, as in transformers with num_beams W and the same
    length_penalty and early_stopping (docs/beam_search.md).
    grammar: a constraint on the whole output; the output ends where the grammar allows no further token, regardless of
    min_tokens and ignore_eos. stop, stop_token_ids and max_tokens may end it earlier.
    """

    max_tokens: int | None = FIELDS["max_tokens"].default
    min_tokens: int = FIELDS["min_tokens"].default
    temperature: float = FIELDS["temperature"].default
    top_p: float = FIELDS["top_p"].default
    top_k: int = FIELDS["top_k"].default
    min_p: float = FIELDS["min_p"].default
    presence_penalty: float = FIELDS["presence_penalty"].default
    frequency_penalty: float = FIELDS["frequency_penalty"].default
    repetition_penalty: float = FIELDS["repetition_penalty"].default
    logit_bias: tuple[tuple[int, float], ...] = FIELDS["logit_bias"].default
    seed: int | None = FIELDS["seed"].default
    stop: tuple[str, ...] = FIELDS["stop"].default
    stop_token_ids: tuple[int, ...] = FIELDS["stop_token_ids"].default
    ignore_eos: bool = FIELDS["ignore_eos"].default
    logprobs: int | None = FIELDS["logprobs"].default
    prompt_logprobs: int | None = FIELDS["prompt_logprobs"].default
    speculation: bool = FIELDS["speculation"].default
    acceptance: Literal["exact", "typical"] = FIELDS["acceptance"].default
    typical_epsilon: float = FIELDS["typical_epsilon"].default
    typical_delta: float = FIELDS["typical_delta"].default
    beam_width: int | None = FIELDS["beam_width"].default
    length_penalty: float = FIELDS["length_penalty"].default
    early_stopping: bool | Literal["never"] = FIELDS["early_stopping"].default
    grammar: Grammar | None = FIELDS["grammar"].default

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        bias = self.logit_bias
        pairs = bias.items() if isinstance(bias, dict) else bias or ()
        object.__setattr__(self, "logit_bias", tuple(sorted((int(i), float(b)) for i, b in pairs)))
        check_ranges(self)
        if any(not text for text in self.stop):
            raise RequestError("stop must not contain an empty string", "stop")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens")
        self._check_acceptance()
        check_beam_fields(self)
        if self.beam_width is not None:  # a beam search does not sample, so temperature has no effect
            object.__setattr__(self, "temperature", 0.0)

    def _check_acceptance(self) -> None:
        if self.acceptance not in ("exact", "typical"):
            raise RequestError(f'acceptance must be "exact" or "typical", got {self.acceptance!r}', "acceptance")
        if self.acceptance == "exact":
            for name in ("typical_epsilon", "typical_delta"):
                if getattr(self, name) != default(name):
                    raise RequestError(f'{name} requires acceptance "typical"; set it or remove {name}', name)
        elif self.temperature == 0.0:
            raise RequestError("acceptance: at temperature 0, typical equals exact; remove it", "acceptance")
        elif not self.speculation:
            raise RequestError(
                "acceptance: typical requires speculation; remove it, or do not turn speculation off", "acceptance"
            )

    @property
    def needs_full_logits(self) -> bool:
        """True if choosing a token needs more than each vocabulary shard's argmax of logits / T + noise."""
        return needs_full_logits(self)
