"""RequestOutput: the result of one prompt, in the form of vLLM's class of the same name.

Owns the shape of results. Not here: how text comes about (text/text_stream.py), HTTP bodies (api/response_builder.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medusa_dist.api.step_records import step_reports
from medusa_dist.offline.conversations import ChatStream
from medusa_dist.outputs import FinishReason, Hypothesis, Output, SpeculationStats, TokenLogprobs
from medusa_dist.request import Request
from medusa_dist.text.text_stream import TextStream
from medusa_dist.text.token_text import token_text


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability. rank: 1 is the most likely; None below the number of tokens that was asked for.

    decoded_token: its text.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class PositionLogprobs(dict[int, Logprob]):
    """The log-probabilities at one position by token id, as in vLLM: of the actual token, then of the most likely ones.

    token_id, logprob, top_ids, top_logprobs: the same as in TokenLogprobs (outputs.py).
    """

    def __init__(self, entry: TokenLogprobs, tokenizer: Any) -> None:
        ranks = {token_id: rank for rank, token_id in enumerate(entry.top_ids, start=1)}
        logprobs = {entry.token_id: entry.logprob} | dict(zip(entry.top_ids, entry.top_logprobs, strict=True))
        super().__init__(
            {i: Logprob(value, ranks.get(i), token_text(tokenizer, i)[0]) for i, value in logprobs.items()}
        )
        self.token_id = entry.token_id
        self.logprob = entry.logprob
        self.top_ids = entry.top_ids
        self.top_logprobs = entry.top_logprobs


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One output of a prompt; of a beam search, one hypothesis.

    token_ids: with the token that ended it, which is not in the text. cumulative_logprob: sum over the tokens, if
    logprobs were requested. stop_reason: the stop string, or the id from stop_token_ids, that ended it.
    heads[i]: the Medusa head that guessed token i; 0 = the base model. message: of a chat, the assistant's message that
    the text is: content, reasoning_content of a model that reasons, tool_calls; else None. steps: with explain, what
    each step did, in the form of the field `steps` over HTTP (docs/requests.md); else None.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    seed: int = 0
    heads: tuple[int, ...] = ()
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    message: dict[str, Any] | None = field(default=None, compare=False)  # ids of calls are random
    steps: list[dict[str, Any]] | None = field(default=None, compare=False)  # other drafts, the same output

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls of the message, in OpenAI's form; empty if there are none."""
        return list((self.message or {}).get("tool_calls") or ())

    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """The outputs of one prompt.

    prompt: its text, if it was given as one. outputs: n of them, by index. num_cached_tokens: prompt tokens found in
    the prefix cache. prompt_logprobs: if requested, one entry per prompt token, None for the first. hypotheses: of a
    beam search, all, best first. acceptance: "exact", or "typical": lossy.
    token_ids, text, finish_reason, seed, heads, logprobs, stats: of the first output.
    """

    request_id: str = field(compare=False)
    prompt: str | None = field(compare=False)
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    hypotheses: tuple[Hypothesis, ...] = ()
    acceptance: str = "exact"
    finished: bool = True

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the first output."""
        return tuple(self.outputs[0].token_ids)

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first output ended."""
        return self.outputs[0].finish_reason

    @property
    def seed(self) -> int:
        """The seed of the first output, from which those of the others derive."""
        return self.outputs[0].seed

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of the first output's tokens."""
        return self.outputs[0].heads

    @property
    def logprobs(self) -> tuple[PositionLogprobs, ...]:
        """Log-probabilities of the first output; empty if not requested."""
        return tuple(self.outputs[0].logprobs or ())

    @property
    def stats(self) -> SpeculationStats:
        """Speculation counts of the first output."""
        return self.outputs[0].stats


class RequestOutputs(list[RequestOutput]):
    """Results in the order of the conversations. With a single one, its attributes are found here, too."""

    def __getattr__(self, name: str) -> Any:
        if len(self) != 1 or name.startswith("__"):
            raise AttributeError(f"{name!r}: {len(self)} results; take one by its index")
        return getattr(self[0], name)


def request_output(
    prompt: str | None,
    requests: Sequence[Request],
    streams: Sequence[TextStream],
    tokenizer: Any,
    new_stream: Callable[[], TextStream] | None = None,
) -> RequestOutput:
    """The result of one prompt. requests, streams: one per output, finished; a beam search has one of each.

    new_stream: makes the stream of another hypothesis; None: one of plain text.
    """
    first, stream, params = requests[0], streams[0], requests[0].params
    scores = [None if entry is None else PositionLogprobs(entry, tokenizer) for entry in stream.prompt_logprobs]
    outputs = [_completion(i, r, s, tokenizer) for i, (r, s) in enumerate(zip(requests, streams, strict=True))]
    if stream.hypotheses:
        make = new_stream or (lambda: TextStream(tokenizer, params))
        others = enumerate(stream.hypotheses[1 : params.n], 1)
        outputs += [_other_beam(i, first, beam, tokenizer, make()) for i, beam in others]
    return RequestOutput(
        request_id=first.request_id,
        prompt=prompt,
        prompt_token_ids=list(first.prompt_ids),
        outputs=outputs,
        prompt_logprobs=None if params.prompt_logprobs is None else scores,
        num_cached_tokens=stream.num_cached_tokens,
        hypotheses=stream.hypotheses,
        acceptance=params.acceptance,
    )


def _completion(index: int, request: Request, stream: TextStream, tokenizer: Any) -> CompletionOutput:
    has_logprobs = request.params.logprobs is not None
    return CompletionOutput(
        index=index,
        text=stream.text,
        token_ids=list(stream.token_ids),
        cumulative_logprob=sum(entry.logprob for entry in stream.logprobs) if has_logprobs else None,
        logprobs=[PositionLogprobs(entry, tokenizer) for entry in stream.logprobs] if has_logprobs else None,
        finish_reason=stream.finish_reason,
        stop_reason=stream.stop_reason,
        seed=request.seed,
        heads=tuple(stream.heads),
        stats=stream.stats,
        message=stream.message if isinstance(stream, ChatStream) else None,
        steps=_steps(stream, tokenizer) if request.explain else None,
    )


def _steps(stream: TextStream, tokenizer: Any) -> list[dict[str, Any]]:
    return step_reports(tokenizer, stream.steps, stream.token_ids, stream.token_texts)


def _other_beam(
    index: int, request: Request, hypothesis: Hypothesis, tokenizer: Any, stream: TextStream
) -> CompletionOutput:
    """A hypothesis after the best one; the search's counts belong to the best."""
    stream.push(
        Output(request_id=request.request_id, token_ids=hypothesis.token_ids, finish_reason=hypothesis.finish_reason)
    )
    return _completion(index, request, stream, tokenizer)
