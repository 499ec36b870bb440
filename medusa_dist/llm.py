"""LLM: offline inference, text in and text out. Follows vLLM's class of the same name.

Owns the offline interface. Not here: HTTP (api/, serve/), decoding (engine/). With tensor_parallel_size 1 the engine
runs in this process; with more, each rank runs in its own process on Ray (llm_backend.py).
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoTokenizer

from medusa_dist.config import parse_config
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.messages import Abort, Refusal, Submit
from medusa_dist.errors import ConfigError, RequestError
from medusa_dist.llm_backend import LocalBackend, refuse_service_keys, start_backend
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.model.support_check import check_servable
from medusa_dist.outputs import FinishReason, Hypothesis, Output, SpeculationStats, TokenLogprobs
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.chat_template import encode_chat
from medusa_dist.text.text_stream import TextDelta, TextStream

Prompt = str | Sequence[int]
SpeculationSpec = str | int | Sequence[Sequence[int]] | Mapping[str, Any]


@dataclass(frozen=True)
class RequestOutput:
    """A finished request. heads[i]: the Medusa head that guessed token i; 0 = the base model.

    num_cached_tokens: prompt tokens found in the prefix cache. prompt_logprobs: if requested, one entry per prompt
    token, None for the first. hypotheses: of a beam search, best first; token_ids and text are those of the best.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    seed: int
    heads: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    acceptance: str = "exact"  # or "typical": lossy


class LLM:
    """Offline inference with one model.

    model: hub id, folder, GGUF file, or demo:smollm2-135m. heads: folder or hub id of a head file; None: the demo
    model's own heads, otherwise none. speculation: "auto" (dynamic trees), "off", a number of draft tokens per step
    (dynamic trees of at most that size), or a static tree, by name ("mc_sim_7b_63") or as paths of top-k indices. Both
    also accept the config's own keys, as in heads={"source": ..., "allow_untrained": True}. Further keyword arguments:
    any key of `Config`, for example max_model_len=2048. Raises ConfigError (also for unknown keys), ModelError or
    HeadsError.
    """

    def __init__(
        self,
        model: str,
        *,
        heads: str | Mapping[str, Any] | None = None,
        dtype: str = "float32",
        tensor_parallel_size: int = 1,
        speculation: SpeculationSpec = "auto",
        **options: Any,
    ) -> None:
        refuse_service_keys(options)
        if heads is not None:
            options["heads"] = {"source": heads} if isinstance(heads, str) else dict(heads)
        arguments = {"model": model, "dtype": dtype, "tensor_parallel_size": tensor_parallel_size, **options}
        self.config = parse_config({**arguments, "speculation": speculation_keys(speculation)})
        folder = model_folder(self.config)
        check_servable(folder, tensor_parallel_size, self.config.trust_remote_code)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=self.config.trust_remote_code)
        self._backend = start_backend(self.config)
        self._num_requests = 0
        self._open_ids: set[str] = set()  # of all running iterations
        self._kept: list[Output | Refusal] = []

    @property
    def facts(self) -> dict[str, Any]:
        """Facts known after the start: device, KV blocks, speculation, seconds per phase."""
        return self._backend.facts

    @property
    def engine(self) -> Engine:
        """The engine in this process, for measurements. Raises ConfigError if the ranks run in other processes."""
        if not isinstance(self._backend, LocalBackend):
            raise ConfigError("tensor_parallel_size: the engine runs in this process only with 1; set it to 1")
        return self._backend.engine

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete each prompt (a text, or token ids); results are in the order of the prompts.

        params, priority: one for all prompts, or one each; lower priorities are scheduled first. cache_salt: of all
        prompts; they share prefixes only with prompts of the same salt. progress: show a progress bar. Raises
        RequestError, naming the field, for an invalid prompt or parameter; in this case nothing is decoded.
        """
        requests = self._requests(_as_list(prompts), params, priority, cache_salt)
        streams = {r.request_id: TextStream(self.tokenizer, r.params) for r in requests}
        with _bar(len(requests), progress) as advance:
            for request_id, delta in self._run(requests, streams):
                if delta.finish_reason is not None:
                    advance(request_id)
        return [_result(request, streams[request.request_id]) for request in requests]

    def as_finished(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | None = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Like `generate`, for token ids: yields (index, result) as each prompt finishes. Leaving aborts the rest."""
        requests = self._requests(list(prompts), params, priority, cache_salt)
        places = {request.request_id: place for place, request in enumerate(requests)}
        streams = {request.request_id: TextStream(self.tokenizer, request.params) for request in requests}
        for request_id, delta in self._run(requests, streams):
            if delta.finish_reason is not None:
                yield places[request_id], _result(requests[places[request_id]], streams[request_id])

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Reply to a conversation: messages are {"role": ..., "content": ...}, with the model's chat template.

        params, priority, cache_salt: as in `generate`.
        """
        return self.generate([self.chat_ids(messages)], params, priority=priority, cache_salt=cache_salt)[0]

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        return encode_chat(self.tokenizer, messages)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Iterator[TextDelta]:
        """Complete one prompt step by step, otherwise like `generate`; leaving the iteration aborts the request."""
        request = self._request(prompt, params or SamplingParams(), priority, cache_salt)
        stream = TextStream(self.tokenizer, request.params)
        for _, delta in self._run([request], {request.request_id: stream}):
            yield delta

    def shutdown(self) -> None:
        """Stop everything this LLM started; it cannot be used afterwards. Idempotent."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()

    def _requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
        cache_salt: str | None,
    ) -> list[Request]:
        """One request per prompt. params, priority: one for all, or one each."""
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        priorities = [priority] * len(prompts) if isinstance(priority, int) else list(priority)
        for name, given in (("params", each), ("priority", priorities)):
            if len(given) != len(prompts):
                raise RequestError(
                    f"{name}: {len(given)} given for {len(prompts)} prompts; give one, or one per prompt", name
                )
        triples = zip(prompts, each, priorities, strict=True)
        return [self._request(prompt, p, number, cache_salt) for prompt, p, number in triples]

    def _request(self, prompt: Prompt, params: SamplingParams, priority: int, cache_salt: str | None) -> Request:
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        self._num_requests += 1
        return Request(
            request_id=f"llm-{self._num_requests}",
            prompt_ids=tuple(ids),
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            priority=priority,
            cache_salt=cache_salt,
        )

    def _run(self, requests: list[Request], streams: dict[str, TextStream]) -> Iterator[tuple[str, TextDelta]]:
        """Decode all requests; yields (request id, delta). On any exit, unfinished requests are aborted."""
        open_ids = {request.request_id for request in requests}
        self._open_ids |= open_ids
        try:
            self._backend.send([Submit(request) for request in requests])
            while open_ids:
                for message in self._messages(open_ids):
                    if message.request_id not in open_ids:
                        continue  # aborted earlier
                    if message.error is not None:
                        raise message.error
                    assert isinstance(message, Output)
                    delta = streams[message.request_id].push(message)
                    if delta.stopped:
                        self._backend.send([Abort(message.request_id)])
                    if delta.finish_reason is not None:
                        open_ids.discard(message.request_id)
                        self._open_ids.discard(message.request_id)
                    yield message.request_id, delta
        finally:
            if open_ids:
                self._open_ids -= open_ids
                self._backend.send([Abort(request_id) for request_id in sorted(open_ids)])

    def _messages(self, wanted: set[str]) -> list[Output | Refusal]:
        """New messages for these requests. Messages for other running streams are kept for them."""
        if not any(message.request_id in wanted for message in self._kept):
            self._kept += self._backend.receive()
        mine = [message for message in self._kept if message.request_id in wanted]
        others = self._open_ids - wanted
        self._kept = [message for message in self._kept if message.request_id in others]
        return mine


def speculation_keys(speculation: SpeculationSpec) -> dict[str, Any]:
    """LLM's short forms of `speculation` as config keys."""
    if isinstance(speculation, str):
        return {"mode": speculation} if speculation in ("auto", "off") else {"mode": "static", "tree": speculation}
    if isinstance(speculation, Mapping):
        return dict(speculation)
    if isinstance(speculation, int):
        return {"mode": "auto", "max_nodes": speculation} if speculation else {"mode": "off"}
    return {"mode": "static", "tree": speculation, "max_nodes": len(speculation)}


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(p, int) for p in prompts):
        return [prompts]  # type: ignore[list-item]  # one prompt, as token ids
    return list(prompts)  # type: ignore[arg-type]


def _result(request: Request, stream: TextStream) -> RequestOutput:
    return RequestOutput(
        prompt_token_ids=request.prompt_ids,
        token_ids=tuple(stream.token_ids),
        text=stream.text,
        finish_reason=stream.finish_reason,
        seed=request.seed,
        heads=tuple(stream.heads),
        logprobs=tuple(stream.logprobs),
        stats=stream.stats,
        num_cached_tokens=stream.num_cached_tokens,
        prompt_logprobs=stream.prompt_logprobs,
        hypotheses=stream.hypotheses,
        acceptance=request.params.acceptance,
    )


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar of finished requests, or a no-op."""
    if not show:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("requests", total=total)
        yield lambda _: bar.advance(task)
