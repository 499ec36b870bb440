"""ChatAnswer: response bodies and stream chunks of /v1/chat/completions.

Owns their form. Not here: the message (message.py), what all routes share (api/response_builder.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from medusa_dist.api.chat.message import ChatMessageBuilder
from medusa_dist.api.prompt_logprobs import LOWEST_LOGPROB, token_name
from medusa_dist.api.response_builder import Facts, ResponseBuilder, end_of, without_end
from medusa_dist.outputs import FinishReason, TokenLogprobs
from medusa_dist.text.text_stream import TextDelta, TextStream
from medusa_dist.text.token_text import token_text


class ChatAnswer(ResponseBuilder):
    """/v1/chat/completions. messages[i]: the message of choice i, which has got no text yet."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, facts: Facts, streams: Sequence[TextStream], tokenizer: Any, messages: Sequence[ChatMessageBuilder]
    ) -> None:
        super().__init__(facts, streams, tokenizer)
        self._messages = messages

    def whole(self) -> dict[str, Any]:
        """Adds prompt logprobs, if requested, next to the choices, which all have the same prompt."""
        return {**super().whole(), **self._prompt_logprobs(0), **self._prompt_ids(0)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds the token ids of the prompt to the first chunk, if requested."""
        ids = {} if self._has_begun else self._prompt_ids(0)
        return {**super()._chunk(choices), **ids}

    def _choice(self, index: int, delta: TextDelta, text: str) -> dict[str, Any]:
        message = self._messages[index]
        message.push(text, is_last=True)
        end = self._end(index, delta)
        return {"index": index, "message": message.message(), **end, **self._details(delta)}

    def _opening(self, index: int) -> Iterator[dict[str, Any]]:
        role = {"role": "assistant", "content": ""}
        yield {"index": index, "delta": role, "logprobs": None, "finish_reason": None, "stop_reason": None}

    def _parts(self, index: int, delta: TextDelta) -> Iterator[dict[str, Any]]:
        is_last = delta.finish_reason is not None
        rest = without_end(delta)  # the tokens are sent once, with the first part
        for fields in self._messages[index].push(delta.text, is_last):
            yield self._part(index, fields, rest)
            rest = TextDelta()
        if is_last:
            end = end_of(delta)
            yield self._part(index, {}, replace(rest, finish_reason=end.finish_reason, stop_reason=end.stop_reason))
        elif self._has_details and rest.token_ids:
            yield self._part(index, {}, rest)

    def _part(self, index: int, fields: dict[str, Any], delta: TextDelta) -> dict[str, Any]:
        end = self._end(index, delta, streamed=True)
        return {"index": index, "delta": fields, **end, **self._details(delta)}

    def _end(self, index: int, delta: TextDelta, streamed: bool = False) -> dict[str, Any]:
        logprobs, reason = None, delta.finish_reason
        if self._facts.num_logprobs is not None and (delta.token_ids or not streamed):
            logprobs = {"content": [self._entry(entry) for entry in delta.logprobs], "refusal": None}
        called = reason is FinishReason.STOP and self._messages[index].has_calls
        finish_reason = "tool_calls" if called else reason
        return {"logprobs": logprobs, "finish_reason": finish_reason, "stop_reason": delta.stop_reason}

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = zip(entry.top_ids, entry.top_logprobs, strict=True)
        return {**self._scored(entry.token_id, entry.logprob), "top_logprobs": [self._scored(i, p) for i, p in top]}

    def _scored(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(self._tokenizer, token_id)
        text = token_name(token_id) if self._facts.names_ids else text
        return {"token": text, "bytes": list(raw), "logprob": max(logprob, LOWEST_LOGPROB)}
