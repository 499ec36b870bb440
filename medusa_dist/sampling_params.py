"""SamplingParams: how the output tokens of a request are chosen.

Owns the fields and their checks. Not here: the HTTP fields (api/schema/requests.py), the table of defaults and ranges
(sampling_fields.py). No torch.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Any, Literal

from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar, StructuredOutputsParams
from medusa_dist.sampling_fields import (
    FIELDS,
    MAX_BAD_WORDS,
    check_beam_fields,
    check_ranges,
    default,
    needs_full_logits,
    whole_number,
)

__all__ = ["SamplingParams", "StructuredOutputsParams"]  # both are in vLLM's module of this name

BadWord = str | tuple[int, ...]


@dataclass(slots=True, unsafe_hash=True)  # by value, as a Request is; a key must not be assigned to afterwards
class SamplingParams:
    """How output tokens are chosen. Follows vLLM's class of the same name: names, meanings, and their order.

    A field may be assigned later; the result is checked as at creation. Raises RequestError naming the field.

    n: outputs per prompt; output i uses choice_seed(seed, i) (request.py). With beam_width, the n best hypotheses.
    temperature: 0 is greedy. top_p, top_k (0 or -1 = all) and min_p filter the distribution after temperature and
    penalties. max_tokens: None = up to the context length, 0 = compute (and score) only the prompt. seed: None or -1 =
    random, reported in the output.
    top_p: 0 keeps the most likely token alone.
    stop: strings that end the output and are not part of it. stop_token_ids: the same for token ids.
    include_stop_str_in_output: the text that ended the output is part of it.
    allowed_token_ids: None = all; otherwise the output consists of these tokens. Include an end-of-sequence token if
    the output may end before max_tokens.
    bad_words: texts, or lists of token ids, that the output does not contain. A text is banned as the tokenizer writes
    it, at the start of a word and after a blank (text/bad_words.py); the model can still spell it with other tokens.
    logit_bias and bans that would leave no token do not apply.
    skip_special_tokens: False shows special tokens in the text; not the end-of-sequence or stop token, unless
    include_stop_str_in_output. spaces_between_special_tokens: False removes blanks that some tokenizers write there.
    logprobs: None = none, k = the log-probability of the chosen token and of the k most likely tokens, under the base
    model's own distribution before temperature, penalties and filters.
    prompt_logprobs: None = none, k = the same for the prompt tokens, in the first output.
    detokenize: False leaves the text empty; the token ids are the same. Not with stop.
    speculation: False decodes this request without draft tokens; the output is the same.
    acceptance: "exact", or "typical" (lossy): draft tokens that are likely enough by typical_epsilon and typical_delta
    are accepted (medusa/trees/accept.py), so the output depends on the drafts.
    beam_width: None = no beam search; W = the W best hypotheses, as in transformers with num_beams W and the same
    length_penalty and early_stopping (docs/beam_search.md).
    grammar: a constraint on the whole output; the output ends where the grammar allows no further token, regardless of
    min_tokens and ignore_eos. stop, stop_token_ids and max_tokens may end it earlier. structured_outputs: the same
    constraint in vLLM's form; it becomes the grammar.
    """

    n: int = FIELDS["n"].default
    presence_penalty: float = FIELDS["presence_penalty"].default
    frequency_penalty: float = FIELDS["frequency_penalty"].default
    repetition_penalty: float = FIELDS["repetition_penalty"].default
    temperature: float = FIELDS["temperature"].default
    top_p: float = FIELDS["top_p"].default
    top_k: int = FIELDS["top_k"].default
    min_p: float = FIELDS["min_p"].default
    seed: int | None = FIELDS["seed"].default
    stop: tuple[str, ...] = FIELDS["stop"].default
    stop_token_ids: tuple[int, ...] = FIELDS["stop_token_ids"].default
    ignore_eos: bool = FIELDS["ignore_eos"].default
    max_tokens: int | None = FIELDS["max_tokens"].default
    min_tokens: int = FIELDS["min_tokens"].default
    logprobs: int | None = FIELDS["logprobs"].default
    prompt_logprobs: int | None = FIELDS["prompt_logprobs"].default
    _: KW_ONLY
    allowed_token_ids: tuple[int, ...] | None = FIELDS["allowed_token_ids"].default
    bad_words: tuple[BadWord, ...] = FIELDS["bad_words"].default
    include_stop_str_in_output: bool = FIELDS["include_stop_str_in_output"].default
    skip_special_tokens: bool = FIELDS["skip_special_tokens"].default
    spaces_between_special_tokens: bool = FIELDS["spaces_between_special_tokens"].default
    detokenize: bool = FIELDS["detokenize"].default
    logit_bias: tuple[tuple[int, float], ...] = FIELDS["logit_bias"].default
    speculation: bool = FIELDS["speculation"].default
    acceptance: Literal["exact", "typical"] = FIELDS["acceptance"].default
    typical_epsilon: float = FIELDS["typical_epsilon"].default
    typical_delta: float = FIELDS["typical_delta"].default
    beam_width: int | None = FIELDS["beam_width"].default
    length_penalty: float = FIELDS["length_penalty"].default
    early_stopping: bool | Literal["never"] = FIELDS["early_stopping"].default
    grammar: Grammar | None = FIELDS["grammar"].default
    structured_outputs: InitVar[StructuredOutputsParams | None] = None

    def __post_init__(self, structured_outputs: StructuredOutputsParams | None) -> None:
        self._take_grammar(structured_outputs)
        self._normalise_lists()
        self._normalise_masks()
        check_ranges(self)
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        if self.stop and not self.detokenize:
            raise RequestError(
                "stop requires detokenize: strings are found in the text; use stop_token_ids, or remove detokenize",
                "stop",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens")
        self._check_acceptance()
        check_beam_fields(self)
        if self.beam_width is not None:  # a beam search does not sample, so temperature has no effect
            object.__setattr__(self, "temperature", 0.0)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a field as if it had been given at creation. Raises RequestError, and then changes nothing."""
        names = self.__slots__
        if not hasattr(self, names[-1]):  # still in the constructor, which checks all fields at its end
            object.__setattr__(self, name, value)
            return
        if name not in (*names, "structured_outputs"):
            raise AttributeError(f"SamplingParams has no field {name!r}")
        values: dict[str, Any] = {"grammar": None} if name == "structured_outputs" else {}
        changed = replace(self, **values, **{name: value})
        for each in names:
            object.__setattr__(self, each, getattr(changed, each))

    def _take_grammar(self, structured_outputs: StructuredOutputsParams | None) -> None:
        if structured_outputs is None:
            return
        if not isinstance(structured_outputs, StructuredOutputsParams):
            raise RequestError("structured_outputs must be a StructuredOutputsParams", "structured_outputs")
        if self.grammar is not None:
            raise RequestError("grammar and structured_outputs are both given; remove one", "structured_outputs")
        object.__setattr__(self, "grammar", structured_outputs.as_grammar())

    def _normalise_lists(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
            raise RequestError(f"stop must be a text or a list of texts, got {self.stop!r}", "stop")
        if not all(stop):
            raise RequestError("stop must not contain an empty string", "stop")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids or ()))
        bias = self.logit_bias
        try:
            pairs = bias.items() if isinstance(bias, Mapping) else bias or ()
            bias = tuple(sorted((int(i), float(b)) for i, b in pairs))
        except (TypeError, ValueError):
            raise RequestError(f"logit_bias must map token ids to numbers, got {bias!r}", "logit_bias") from None
        object.__setattr__(self, "logit_bias", bias)

    def _normalise_masks(self) -> None:
        allowed = self.allowed_token_ids
        if allowed is not None:
            if not allowed:
                raise RequestError(
                    "allowed_token_ids is empty, so no token could be chosen; remove it", "allowed_token_ids"
                )
            ids = _token_ids("allowed_token_ids", allowed)
            object.__setattr__(self, "allowed_token_ids", tuple(sorted(set(ids))))
        words = (self.bad_words,) if isinstance(self.bad_words, str) else self.bad_words or ()
        if not isinstance(words, list | tuple):
            raise RequestError(
                f"bad_words must be a list of texts or of lists of token ids, got {words!r}", "bad_words"
            )
        words = tuple(dict.fromkeys(w if isinstance(w, str) else _token_ids("bad_words", w) for w in words))
        if not all(words):
            raise RequestError("bad_words must not contain an empty text", "bad_words")
        if len(words) > 2 * MAX_BAD_WORDS:  # each text may become two lists of token ids
            raise RequestError(f"bad_words has {len(words)} entries; the maximum is {MAX_BAD_WORDS}", "bad_words")
        object.__setattr__(self, "bad_words", words)

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


def _token_ids(name: str, given: Any) -> tuple[int, ...]:
    """A list of token ids as a tuple. Raises RequestError naming the field."""
    try:
        return tuple(whole_number(name, token_id) for token_id in given)
    except TypeError:  # not a list at all
        raise RequestError(f"{name} must be a list of token ids, got {given!r}", name) from None
