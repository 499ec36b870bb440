"""Builds OpenAI response bodies and stream chunks from text deltas, as plain dicts.

Owns the content of responses. Not here: the wire format of a stream (sse.py), the documented response schema
(schema/responses.py), text and stop strings (text/text_stream.py).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

from medusa_dist.api.convert import EncodedPrompt
from medusa_dist.api.prompt_logprobs import LOWEST_LOGPROB, echoed, prompt_logprobs, token_key, top_table
from medusa_dist.api.step_records import step_reports
from medusa_dist.outputs import SpeculationStats
from medusa_dist.text.no_tokenizer import NoTokenizer
from medusa_dist.text.text_stream import TextDelta, TextStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What all chunks of a response share. num_prompt_tokens counts each prompt once, for any number of choices.

    num_logprobs, num_prompt_logprobs: most likely tokens per output and prompt token; None: no logprobs.
    continuous_usage: whether each chunk has the usage so far. prompt_ids: of each choice, if token ids are returned.
    names_ids: whether logprobs name tokens by their ids. explains: whether choices have their steps.
    warnings: what of the request has no effect, in sentences.
    """

    call_id: str
    model: str
    system_fingerprint: str
    seed: int
    acceptance: str
    num_prompt_tokens: int
    choices_per_prompt: int
    num_logprobs: int | None
    num_prompt_logprobs: int | None
    include_usage: bool
    continuous_usage: bool = False
    prompt_ids: tuple[tuple[int, ...], ...] | None = None
    names_ids: bool = False
    explains: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def notes(self) -> dict[str, Any]:
        """What the client has to know to repeat or judge an answer."""
        warnings = {"warnings": list(self.warnings)} if self.warnings else {}
        return {"seed": self.seed, "acceptance": self.acceptance, **warnings}


class ResponseBuilder(ABC):
    """The response to one call. streams[i] is choice i; the two routes differ only in format."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, facts: Facts, streams: Sequence[TextStream], tokenizer: Any) -> None:
        self._facts = facts
        self._streams = streams
        self._tokenizer = tokenizer
        # Also where there is no text that could say which tokens.
        self._sends_ids = facts.prompt_ids is not None or isinstance(tokenizer, NoTokenizer)
        self._created = int(time.time())
        self._opened: set[int] = set()
        self._num_sent = 0  # output tokens of the chunks so far
        self._has_begun = False

    def whole(self) -> dict[str, Any]:
        """The body of a non-streaming response; all streams have ended."""
        return {
            **self._head(self.whole_object),
            "choices": [self._choice(i, _everything(stream), stream.text) for i, stream in enumerate(self._streams)],
            "usage": self._usage(sum(len(stream.token_ids) for stream in self._streams)),
            **self._facts.notes,
            "metrics": self._metrics(),
        }

    def chunks(self, index: int, delta: TextDelta) -> Iterator[dict[str, Any]]:
        """The chunks for one delta of one choice; none if there is nothing to send yet."""
        if index not in self._opened:
            for choice in self._opening(index):
                yield self._chunk([choice])
            self._opened.add(index)
        self._num_sent += len(delta.token_ids)
        for choice in self._parts(index, delta):
            yield self._chunk([choice])

    def last_chunks(self) -> Iterator[dict[str, Any]]:
        """The usage chunk, if requested."""
        if self._facts.include_usage:
            yield {**self._chunk([]), "usage": self._usage(self._num_sent), "metrics": self._metrics()}

    @abstractmethod
    def _choice(self, index: int, delta: TextDelta, text: str) -> dict[str, Any]:
        """One complete choice."""

    @abstractmethod
    def _opening(self, index: int) -> Iterator[dict[str, Any]]:
        """What a streamed choice sends before its first token."""

    @abstractmethod
    def _parts(self, index: int, delta: TextDelta) -> Iterator[dict[str, Any]]:
        """A delta as choices of chunks. Text and finish_reason are apart: clients stop reading at a finish_reason."""

    @property
    def _has_details(self) -> bool:
        """Whether tokens are sent that have no text yet."""
        return self._sends_ids or self._facts.num_logprobs is not None or self._facts.explains

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._facts.call_id,
            "object": kind,
            "created": self._created,
            "model": self._facts.model,
            "system_fingerprint": self._facts.system_fingerprint,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head(self.chunk_object), "choices": choices}
        if self._facts.include_usage:
            chunk["usage"] = self._usage(self._num_sent) if self._facts.continuous_usage else None
        if not self._has_begun:
            # In the first chunk, so that the client has them even if the stream fails.
            chunk |= self._facts.notes
            self._has_begun = True
        return chunk

    def _usage(self, completion: int) -> dict[str, Any]:
        prompt = self._facts.num_prompt_tokens
        # Cached tokens count once per prompt, like the prompt itself: those of its first choice.
        cached = sum(s.num_cached_tokens for s in self._streams[:: self._facts.choices_per_prompt])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _metrics(self) -> dict[str, Any]:
        alone = self._streams[0].stats if len(self._streams) == 1 else None
        return {"speculative_decoding": alone and speculation_metrics(alone)}

    def _prompt_logprobs(self, index: int) -> dict[str, Any]:
        """The field prompt_logprobs for the prompt of this choice, if requested."""
        num_top = self._facts.num_prompt_logprobs
        if num_top is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(self._tokenizer, self._streams[index].prompt_logprobs, num_top)}

    def _prompt_ids(self, index: int) -> dict[str, Any]:
        """The field prompt_token_ids for the prompt of this choice, if requested."""
        ids = self._facts.prompt_ids
        return {} if ids is None else {"prompt_token_ids": list(ids[index])}

    def _details(self, delta: TextDelta) -> dict[str, Any]:
        """The fields token_ids and steps of a choice, if they are sent."""
        fields: dict[str, Any] = {"token_ids": list(delta.token_ids)} if self._sends_ids else {}
        if self._facts.explains:
            fields["steps"] = step_reports(self._tokenizer, delta.steps, delta.token_ids, delta.token_texts)
        return fields


class CompletionAnswer(ResponseBuilder):
    """/v1/completions. echoes[i]: the prompt that choice i repeats before its output, None without echo."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, facts: Facts, streams: Sequence[TextStream], tokenizer: Any, echoes: Sequence[EncodedPrompt | None]
    ) -> None:
        super().__init__(facts, streams, tokenizer)
        self._echoes = echoes
        self._begun: set[int] = set()

    def _choice(self, index: int, delta: TextDelta, text: str) -> dict[str, Any]:
        choice = self._piece(index, text, delta)
        echo = self._echoes[index]
        if echo is not None:
            before = self._echo(index, echo)
            choice["text"] = before["text"] + text
            if before["logprobs"] is not None:
                choice["logprobs"] = {
                    key: values + choice["logprobs"][key] for key, values in before["logprobs"].items()
                }
        return {**choice, **self._prompt_logprobs(index), **self._prompt_ids(index)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds the token ids of its prompt to the first chunk of each choice, if requested."""
        new = [choice for choice in choices if choice["index"] not in self._begun]
        for choice in new:
            choice.update(self._prompt_ids(choice["index"]))
            self._begun.add(choice["index"])
        return super()._chunk(choices)

    def _opening(self, index: int) -> Iterator[dict[str, Any]]:
        echo = self._echoes[index]
        if echo is not None:
            yield self._echo(index, echo)

    def _parts(self, index: int, delta: TextDelta) -> Iterator[dict[str, Any]]:
        if delta.text and delta.finish_reason is not None:
            yield self._piece(index, delta.text, without_end(delta))
            delta = end_of(delta)
        if delta.text or delta.finish_reason or (self._has_details and delta.token_ids):
            yield self._piece(index, delta.text, delta)

    def _echo(self, index: int, echo: EncodedPrompt) -> dict[str, Any]:
        """The echoed prompt as a separate chunk."""
        logprobs, num_top = None, self._facts.num_logprobs
        if num_top is not None:
            logprobs = echoed(
                self._tokenizer,
                echo.text,
                echo.ids,
                self._streams[index].prompt_logprobs,
                num_top,
                self._facts.names_ids,
            )
        end = {"finish_reason": None, "stop_reason": None}
        return {"index": index, "text": echo.text, "logprobs": logprobs, **end}

    def _piece(self, index: int, text: str, delta: TextDelta) -> dict[str, Any]:
        logprobs = self._logprobs(index, delta) if self._facts.num_logprobs is not None else None
        end = {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}
        return {"index": index, "text": text, "logprobs": logprobs, **end, **self._details(delta)}

    def _logprobs(self, index: int, delta: TextDelta) -> dict[str, Any]:
        echo, names_ids = self._echoes[index], self._facts.names_ids
        shift = 0 if echo is None else len(echo.text)
        return {
            "tokens": [token_key(self._tokenizer, token_id, names_ids) for token_id in delta.token_ids],
            "token_logprobs": [max(entry.logprob, LOWEST_LOGPROB) for entry in delta.logprobs],
            "top_logprobs": [top_table(self._tokenizer, entry, None, names_ids) for entry in delta.logprobs],
            "text_offset": [shift + offset for offset in delta.text_offsets],
        }


def speculation_metrics(stats: SpeculationStats) -> dict[str, Any]:
    """Acceptance of one request in vLLM's format (metrics.speculative_decoding), which benchmark clients read.

    acceptance_histogram[j]: steps that accepted exactly j draft tokens. A step accepts tokens along one path, so the
    steps that accepted at least k are those in which the guess at depth k was accepted.
    drafters: ours: who drafted what; a token that several drafters guessed counts for each.
    """
    at_least = (stats.num_steps, *stats.accepted_per_head, 0)
    return {
        "mean_acceptance_length": stats.tokens_per_step,
        "draft_acceptance_rate": stats.num_accepted / stats.num_drafted if stats.num_drafted else 0.0,
        "acceptance_histogram": [max(0, a - b) for a, b in pairwise(at_least)],
        "num_spec_steps": stats.num_steps,
        "num_accepted_draft_tokens": stats.num_accepted,
        "num_draft_tokens": stats.num_drafted,
        "num_spec_tokens": len(stats.accepted_per_head),
        "drafters": {
            name: {"num_draft_tokens": drafted, "num_accepted_draft_tokens": stats.accepted_by.get(name, 0)}
            for name, drafted in stats.drafted_by.items()
        },
    }


def without_end(delta: TextDelta) -> TextDelta:
    """The delta as one in the middle of a stream."""
    return replace(delta, finish_reason=None, stop_reason=None)


def end_of(delta: TextDelta) -> TextDelta:
    """What remains of the last delta once its text and tokens were sent."""
    return TextDelta(finish_reason=delta.finish_reason, stopped=delta.stopped, stop_reason=delta.stop_reason)


def _everything(stream: TextStream) -> TextDelta:
    """The complete output as one delta."""
    return TextDelta(
        token_ids=tuple(stream.token_ids),
        logprobs=tuple(stream.logprobs),
        text_offsets=tuple(stream.text_offsets),
        token_texts=tuple(stream.token_texts),
        steps=tuple(stream.steps),
        finish_reason=stream.finish_reason,
        stop_reason=stream.stop_reason,
    )
