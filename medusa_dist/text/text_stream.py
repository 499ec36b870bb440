"""TextStream: incremental detokenisation and stop strings for one request.

Owns the visible text of an output. Used by the HTTP routes and `LLM`. Not here: end-of-sequence and stop token ids
(the engine handles them), max_tokens, grammars. No torch.
visible = text sent to the reader; held = decoded text that may be the start of a stop string; counted = tokens up to
and
including the one that completes a stop string. Later tokens of the same step are surplus and dropped. Characters become
visible when they are complete, text when it can no longer be part of a stop string. A stop string that contains a
special token matches that token, too, although it is never visible (special_stops.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medusa_dist.errors import RequestError
from medusa_dist.outputs import FinishReason, Hypothesis, Output, SpeculationStats, StepRecord, TokenLogprobs
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.detokenizer import Detokenizer
from medusa_dist.text.no_tokenizer import NoTokenizer
from medusa_dist.text.special_stops import SpecialStops


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The visible change from one Output. text: newly visible. token_ids, heads, logprobs, stats: counted tokens only.

    text_offsets[i]: character offset in the whole text at which token i starts, including held text; a token inside a
    stop string may start after the end of the visible text. token_texts[i]: what token i adds to the whole text; empty
    where it hides, or only begins a character. steps: those that chose the counted tokens, if their request asks for
    records.
    finish_reason: None until the end. stopped: a stop string was found; the caller must abort the engine's request.
    stop_reason: the stop string, or the id of stop_token_ids, that ended the text; else None.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    text_offsets: tuple[int, ...] = ()
    token_texts: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    finish_reason: FinishReason | None = None
    stopped: bool = False
    stop_reason: int | str | None = None
    stats: SpeculationStats = field(default_factory=SpeculationStats)


class TextStream:
    """The visible text of one request. Takes its Outputs in order.

    The grouping of tokens into Outputs affects only the grouping of the deltas.

    An end-of-sequence or stop token is the last id of an Output with finish_reason STOP; it is counted but not visible,
    unless the grammar is complete: then it is text. A stop string is not visible; the text before it is. Both are
    visible with include_stop_str_in_output, the token only if it has a text (skip_special_tokens). If several
    stop strings match, the one completed first counts; of two completed by the same character, the longer. A stop
    string completed within the first min_tokens tokens is ordinary text.
    text, token_ids, heads, logprobs, text_offsets, token_texts, steps, stats, finish_reason: all so far. stop_reason:
    the stop string, or the id of stop_token_ids, that ended the text; None after an end-of-sequence token.
    num_cached_tokens, prompt_logprobs: of the prompt, from the engine; hypotheses: of a beam search. shown_ids: special
    tokens that are part of the text though others are not.
    """

    def __init__(
        self,
        tokenizer: Any,
        params: SamplingParams,
        context: Sequence[int] = (),
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        if params.stop and isinstance(tokenizer, NoTokenizer):
            raise RequestError(
                "stop: strings are found in the text, and this model is served without a tokenizer "
                "(skip_tokenizer_init); use stop_token_ids",
                "stop",
            )
        self._detokenizer = Detokenizer(
            tokenizer if params.detokenize else NoTokenizer(),
            context,
            params.skip_special_tokens,
            params.spaces_between_special_tokens,
            shown_ids,
        )
        self._shows_stop = params.include_stop_str_in_output
        self._stop = params.stop
        self._special_stops = SpecialStops(tokenizer, params.stop if params.detokenize else ())
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._min_tokens = params.min_tokens
        self._held = ""
        self._decoded = 0  # characters, visible or held
        self.text = ""
        self.token_ids: list[int] = []
        self.heads: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.text_offsets: list[int] = []
        self.token_texts: list[str] = []
        self.steps: list[StepRecord] = []
        self.stats = SpeculationStats()
        self.num_cached_tokens = 0
        self.hypotheses: tuple[Hypothesis, ...] = ()
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.stopped = False

    def push(self, output: Output) -> TextDelta:
        """Process one Output. Outputs after the end give empty deltas."""
        if self.finish_reason is not None:
            return TextDelta()
        before, num_chars = len(self.token_ids), len(self.text)
        self.num_cached_tokens = output.num_cached_tokens
        self.hypotheses = output.hypotheses
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        is_end = output.finish_reason is FinishReason.STOP and not output.is_complete
        last_is_silent = is_end and not self._shows_stop
        for i, token_id in enumerate(output.token_ids):
            self.token_ids.append(token_id)
            self.text_offsets.append(self._decoded)
            is_silent = last_is_silent and i == len(output.token_ids) - 1
            hidden_id = token_id if is_silent or self._detokenizer.hides(token_id) else None
            new = "" if is_silent else self._detokenizer.push(token_id)
            self.token_texts.append(new)
            self._reveal(new, hidden_id)
            if self.stopped:
                break
        if output.finish_reason is not None and not self.stopped:
            rest = self._detokenizer.flush()
            self._reveal(rest)
            if rest and self.token_texts:
                self.token_texts[-1] += rest
        if is_end and not self.stopped and self.token_ids and self.token_ids[-1] in self._stop_token_ids:
            self.stop_reason = self.token_ids[-1]
        self.finish_reason = FinishReason.STOP if self.stopped else output.finish_reason
        if self.finish_reason is not None and not self.stopped:
            self.text, self._held = self.text + self._held, ""
        return self._count(output, before, num_chars)

    def _reveal(self, new: str, hidden_id: int | None = None) -> None:
        """Append decoded text; reveal what cannot be part of a stop string; stop at the first complete one.

        hidden_id: the token, if it has no visible text by itself.
        """
        pending = "" if hidden_id is None else self._detokenizer.pending
        special = self._special_stops.push(new, hidden_id, pending)
        self._decoded += len(new)
        old = len(self._held)
        text = self._held + new
        hits = [_first_stop(text, self._stop, old)]
        if special is not None:
            end = len(text + pending) - special.num_after
            hits.append((end, end - special.num_visible, special.stop))
        found = [hit for hit in hits if hit is not None]
        if found and len(self.token_ids) > self._min_tokens:
            _, start, self.stop_reason = min(found)
            self.stopped = True
            shown = self.stop_reason if self._shows_stop else ""
            self.text, self._held = f"{self.text}{(text + pending)[:start]}{shown}", ""
            return
        keep = max(_num_open(text, self._stop), self._special_stops.num_open())
        cut = len(text) - keep
        self.text, self._held = self.text + text[:cut], text[cut:]

    def _count(self, output: Output, before: int, num_chars: int) -> TextDelta:
        """The delta of an Output whose counted tokens start at `before`."""
        num = len(self.token_ids) - before
        delta = TextDelta(
            text=self.text[num_chars:],
            token_ids=output.token_ids[:num],
            heads=output.heads[:num],
            logprobs=output.logprobs[:num],
            text_offsets=tuple(self.text_offsets[before:]),
            token_texts=tuple(self.token_texts[before:]),
            steps=_counted(output.steps, num),
            finish_reason=self.finish_reason,
            stopped=self.stopped,
            stop_reason=self.stop_reason,
            stats=_without(output.stats, output.heads[num:]),
        )
        self.heads.extend(delta.heads)
        self.logprobs.extend(delta.logprobs)
        self.steps.extend(delta.steps)
        self.stats = self.stats + delta.stats
        return delta


def _first_stop(text: str, stops: Sequence[str], old: int) -> tuple[int, int, str] | None:
    """End, start and text of the stop string that is completed first, if it ends after `old` characters."""
    ends = []
    for stop in stops:
        start = text.find(stop, max(0, old - len(stop) + 1))
        if start >= 0:
            ends.append((start + len(stop), start, stop))
    return min(ends) if ends else None


def _num_open(text: str, stops: Sequence[str]) -> int:
    """Number of characters at the end of the text that could be the start of a stop string."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest


def _counted(steps: Sequence[StepRecord], num_tokens: int) -> tuple[StepRecord, ...]:
    """The steps that chose any of the first num_tokens tokens."""
    counted: list[StepRecord] = []
    for step in steps:
        if num_tokens <= 0:
            break
        counted.append(step)
        num_tokens -= step.num_tokens
    return tuple(counted)


def _without(stats: SpeculationStats, surplus_heads: Sequence[int]) -> SpeculationStats:
    """The counts without accepted tokens that were dropped as surplus; those by drafter include them."""
    if not any(surplus_heads):
        return stats
    accepted = list(stats.accepted_per_head)
    for head in surplus_heads:
        if 0 < head <= len(accepted):
            accepted[head - 1] = max(0, accepted[head - 1] - 1)
    return replace(stats, accepted_per_head=tuple(accepted))
