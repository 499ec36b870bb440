"""Jobs of `LLM`: one per prompt of a call, with a request and a text stream per output.

Owns how prompts and sampling parameters become requests: names, seeds, n. Not here: the forms of prompts (prompts.py),
running jobs (llm.py).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medusa_dist.errors import RequestError
from medusa_dist.offline.conversations import PlannedChat
from medusa_dist.offline.prompts import PromptTokens, read_prompt, split_prompts
from medusa_dist.offline.request_output import RequestOutput, request_output
from medusa_dist.request import Request, choice_seed
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.bad_words import with_bad_word_ids
from medusa_dist.text.text_stream import TextStream

Params = SamplingParams | Sequence[SamplingParams] | None
Priority = int | Sequence[int] | None
_TOKENIZATION = ("add_special_tokens", "truncation", "max_length")


@dataclass(frozen=True, slots=True)
class PromptJob:
    """One prompt of a call. requests, streams: one per output; a beam search has one of each.

    new_stream: makes another stream, for one more hypothesis of a search.
    """

    prompt: PromptTokens
    requests: list[Request]
    streams: list[TextStream]
    new_stream: Callable[[], TextStream]

    @property
    def has_ended(self) -> bool:
        """Whether all its outputs have ended."""
        return all(stream.finish_reason is not None for stream in self.streams)

    def result(self, tokenizer: Any) -> RequestOutput:
        """The result of a job that has ended."""
        return request_output(self.prompt.text, self.requests, self.streams, tokenizer, self.new_stream)


class JobMaker:
    """Makes the jobs of one LLM, all with different names.

    seed: of the seeds that it draws; None: random. facts: of the engine; default_sampling_params, max_model_len.
    """

    def __init__(self, tokenizer: Any, seed: int | None, facts: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._facts = facts
        self._num_prompts = 0

    def read(self, prompts: Any, tokenization: Mapping[str, Any] | None = None) -> list[PromptTokens]:
        """The prompts of a call. tokenization: options of the tokenizer. Raises RequestError naming the prompt."""
        options = dict(tokenization or {})
        unknown = [name for name in options if name not in _TOKENIZATION]
        if unknown:
            known, field = ", ".join(_TOKENIZATION), "tokenization_kwargs"
            raise RequestError(f"{field}: {unknown[0]} is not supported; known: {known}", field)

        def encode(text: str) -> Sequence[int]:
            ids: Sequence[int] = self._tokenizer(text, **options)["input_ids"]
            return ids

        return [read_prompt(prompt, i, encode) for i, prompt in enumerate(split_prompts(prompts))]

    def make(
        self,
        prompts: Sequence[PromptTokens],
        params: Params,
        priority: Priority,
        cache_salt: str | None,
        chats: Sequence[PlannedChat] | None = None,
        explain: bool = False,
    ) -> list[PromptJob]:
        """One job per prompt. params, priority: one for all, or one each; no params: the model's own. chats: how the
        prompts are answered, if they are conversations. explain: their outputs have steps. Raises RequestError.
        """
        if params is None:
            params = [self._own_params(len(prompt.ids)) for prompt in prompts]
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        priorities = list(priority) if isinstance(priority, Sequence) else [priority or 0] * len(prompts)
        for name, given in (("sampling_params", each), ("priority", priorities)):
            if len(given) != len(prompts):
                raise RequestError(
                    f"{name}: {len(given)} given for {len(prompts)} prompts; give one, or one per prompt", name
                )
        for one in each:
            if not isinstance(one, SamplingParams):
                raise RequestError(f"sampling_params must be SamplingParams, got {one!r}", "sampling_params")
        planned = [None] * len(prompts) if chats is None else chats
        parts = zip(prompts, each, priorities, planned, strict=True)
        if not isinstance(explain, bool):
            raise RequestError(f"explain must be True or False, got {explain!r}", "explain")
        rest = {"cache_salt": cache_salt, "explain": explain}
        return [self._job(prompt, one, chat, {**rest, "priority": number}) for prompt, one, number, chat in parts]

    def _own_params(self, num_prompt_tokens: int) -> SamplingParams:
        """The model's own params; where their max_tokens exceeds what the context leaves, all of that."""
        own, room = dict(self._facts["default_sampling_params"]), self._facts["max_model_len"] - num_prompt_tokens
        if own.get("max_tokens", 0) >= room:
            own["max_tokens"] = None
        return SamplingParams(**own)

    def _job(
        self,
        prompt: PromptTokens,
        params: SamplingParams,
        chat: PlannedChat | None,
        rest: Mapping[str, Any],
    ) -> PromptJob:
        """rest: further fields of its requests."""
        self._num_prompts += 1
        seed, name = self._draw_seed() if params.seed is None else params.seed, f"llm-{self._num_prompts}"
        is_search = params.beam_width is not None
        # A copy: the caller may change its own later.
        one = replace(with_bad_word_ids(params, self._tokenizer), n=params.n if is_search else 1)
        if chat is not None:
            one = chat.plan.constrained(one, chat.prompt, self._tokenizer)
        rest = dict(rest) if prompt.cache_salt is None else {**rest, "cache_salt": prompt.cache_salt}
        requests = [
            Request(
                request_id=f"{name}-{i}" if i else name,
                prompt_ids=prompt.ids,
                params=one,
                seed=choice_seed(seed, i),
                **rest,
            )
            for i in range(1 if is_search else params.n)
        ]
        context = () if prompt.text is None else prompt.ids  # the output goes on with a text, blanks included

        def new_stream() -> TextStream:
            return TextStream(self._tokenizer, one, context) if chat is None else chat.stream(self._tokenizer, one)

        return PromptJob(prompt, requests, [new_stream() for _ in requests], new_stream)

    def _draw_seed(self) -> int:
        return secrets.randbits(63) if self._seed is None else choice_seed(self._seed, "llm", self._num_prompts)
