"""LLM: offline inference, text in and text out. Follows vLLM's class of the same name.

Owns the offline interface. Not here: HTTP (api/, serve/), decoding (engine/), the forms of prompts, results and
arguments (offline/). With tensor_parallel_size 1 the engine runs in this process; with more, each rank runs in its own
process on Ray (llm_backend.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from medusa_dist.api.chat.answering import Answering
from medusa_dist.engine.engine import Engine
from medusa_dist.engine.messages import Abort, Refusal, Submit
from medusa_dist.errors import ConfigError, RequestError
from medusa_dist.llm_backend import LocalBackend, refuse_service_keys, start_backend
from medusa_dist.model.source.load_tokenizer import load_tokenizer
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.model.support_check import check_servable
from medusa_dist.offline.arguments import SpeculationSpec, config_of
from medusa_dist.offline.conversations import PlannedChat, Tools, chat_plan
from medusa_dist.offline.jobs import JobMaker, Params, Priority, PromptJob
from medusa_dist.offline.progress import UseTqdm, progress_bar
from medusa_dist.offline.prompts import Message, Prompt, in_prompt, split_conversations
from medusa_dist.offline.request_output import RequestOutput, RequestOutputs
from medusa_dist.outputs import Output
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.chat_template import encode_chat
from medusa_dist.text.no_tokenizer import NoTokenizer
from medusa_dist.text.text_stream import TextDelta
from medusa_dist.text.tools.chat_format import chat_format


class LLM:
    """Offline inference with one model.

    model: hub id, folder, GGUF file, or demo:smollm2-135m. heads: folder or hub id of a head file; None: the demo
    model's own heads, otherwise none. speculation: "auto" (dynamic trees), "off", "heads" or "lookup" (dynamic trees of
    one drafter), a number of draft tokens per step (dynamic trees of at most that size), or a static tree, by name
    ("mc_sim_7b_63") or as paths of top-k indices. Both also accept the config's own keys, as in heads={"source": ...,
    "allow_untrained": True}. seed: of the seeds that are drawn for requests without one; None: random. Further keyword
    arguments: any key of `Config`, for example max_model_len=2048, or an argument of vLLM's class, which is honoured or
    refused by name (offline/arguments.py).
    Raises ConfigError (also for unknown keys), ModelError or HeadsError.
    """

    def __init__(
        self,
        model: str,
        *,
        heads: str | Mapping[str, Any] | None = None,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        speculation: SpeculationSpec = "auto",
        seed: int | None = None,
        **options: Any,
    ) -> None:
        refuse_service_keys(options)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError(f"seed must be a whole number, got {seed!r}")
        options |= {"tensor_parallel_size": tensor_parallel_size, "dtype": dtype}
        self.config = config_of(model, {**options, "heads": heads, "speculation": speculation})
        folder = model_folder(self.config)
        check_servable(folder, tensor_parallel_size, self.config.trust_remote_code)
        self.tokenizer = load_tokenizer(folder, self.config)
        self._backend = start_backend(self.config)
        self._jobs = JobMaker(self.tokenizer, seed, self.facts)
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

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer. Raises ConfigError with skip_tokenizer_init."""
        if isinstance(self.tokenizer, NoTokenizer):
            raise ConfigError("skip_tokenizer_init: no tokenizer was loaded; remove it to get one")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """A new SamplingParams with the values that a call without one uses: the model's own where it has some.

        See the config key generation_config. A SamplingParams that you create does not read them.
        """
        return SamplingParams(**self.facts["default_sampling_params"])

    def generate(  # noqa: PLR0913 - vLLM's call, and the former names
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        use_tqdm: UseTqdm = False,
        lora_request: None = None,
        priority: Priority = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        cache_salt: str | None = None,
        explain: bool = False,
        params: Params = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete each prompt; results are in the order of the prompts.

        prompts: one or a list; each is a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, the dicts with
        "cache_salt" if needed. sampling_params, priority: one for all prompts, or one each; lower priorities are
        scheduled first. use_tqdm: show a progress bar, or a class like tqdm that makes one. lora_request: must be None.
        tokenization_kwargs: add_special_tokens, truncation and max_length of the tokenizer. cache_salt: of all prompts
        without their own; they share prefixes only with prompts of the same salt. explain: outputs have `steps`, who
        guessed which token and why. params, progress: former names of sampling_params and use_tqdm. Raises RequestError
        for an invalid prompt or parameter, naming the prompt by its index and the field; in this case nothing is
        decoded.
        """
        _no_adapter(lora_request)
        tokens = self._jobs.read(prompts, tokenization_kwargs)
        jobs = self._jobs.make(tokens, _one_of(sampling_params, params), priority, cache_salt, explain=explain)
        return self._finish(jobs, use_tqdm or progress)

    def as_finished(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: Priority = None,
        cache_salt: str | None = None,
        explain: bool = False,
        params: Params = None,
    ) -> Iterator[tuple[int, RequestOutput]]:
        """Like `generate`, but yields (index, result) as each prompt finishes. Leaving aborts the rest."""
        chosen = _one_of(sampling_params, params)
        jobs = self._jobs.make(self._jobs.read(prompts), chosen, priority, cache_salt, explain=explain)
        for place, _ in self._run(jobs):
            if jobs[place].has_ended:
                yield place, jobs[place].result(self.tokenizer)

    def chat(  # noqa: PLR0913, PLR0917 - vLLM's call, and the former names
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        use_tqdm: UseTqdm = False,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        priority: Priority = None,
        cache_salt: str | None = None,
        explain: bool = False,
        params: Params = None,
    ) -> RequestOutputs:
        """Reply to a conversation, or to each of a list: messages are {"role": ..., "content": ...}.

        chat_template: in place of the model's own. add_generation_prompt: end the prompt with the assistant's cue.
        continue_final_message: continue the last message; set add_generation_prompt to False then.
        chat_template_kwargs: further variables of the template. tools, tool_choice, parallel_tool_calls: in OpenAI's
        form, as over HTTP: calls always match their schemas. Others: as in `generate`. An output's `text` is all that
        the model wrote, as in vLLM; its `message` has content, reasoning_content and tool_calls apart. Raises
        RequestError naming the message.
        """
        _no_adapter(lora_request)
        if chat_template_content_format not in ("auto", "string"):
            raise RequestError(
                f"chat_template_content_format: {chat_template_content_format!r} is not supported; parts of a content "
                'become one text ("string")',
                "chat_template_content_format",
            )
        template = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        rest = {"chat_template": chat_template, "chat_template_kwargs": chat_template_kwargs}
        form = chat_format(self.tokenizer, self.config.tool_format, self.config.reasoning_format, chat_template)
        plan = chat_plan(tools, tool_choice, parallel_tool_calls, form)
        encoded = [self._encode(turns, plan, **template, **rest) for turns in split_conversations(messages)]
        chats = [PlannedChat(plan, text) for text, _ in encoded]
        tokens = self._jobs.read([ids for _, ids in encoded])
        jobs = self._jobs.make(tokens, _one_of(sampling_params, params), priority, cache_salt, chats, explain)
        return RequestOutputs(self._finish(jobs, use_tqdm))

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer."""
        (turns,) = split_conversations(messages)
        form = chat_format(self.tokenizer, self.config.tool_format, self.config.reasoning_format)
        return self._encode(turns, chat_plan(None, None, None, form))[1]

    def _encode(self, turns: list[dict[str, Any]], plan: Answering, **template: Any) -> tuple[str, list[int]]:
        """Text and token ids of a conversation. Control tokens are plain text, unless the config says otherwise."""
        shown, sanitize = plan.conversation_of(turns), self.config.sanitize_control_tokens
        return encode_chat(self.tokenizer, shown.turns, sanitize=sanitize, tools=shown.tools, **template)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        explain: bool = False,
        params: SamplingParams | None = None,
    ) -> Iterator[TextDelta]:
        """Complete one prompt step by step, otherwise like `generate`; leaving the iteration aborts the request."""
        chosen = _one_of(sampling_params, params)
        jobs = self._jobs.make(self._jobs.read(prompt), chosen, priority, cache_salt, explain=explain)
        if len(jobs) != 1 or len(jobs[0].requests) != 1:
            raise RequestError("a stream is one output of one prompt; use generate for several", "n")
        for _, delta in self._run(jobs):
            yield delta

    def shutdown(self) -> None:
        """Stop everything this LLM started; it cannot be used afterwards. Idempotent."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()

    def _finish(self, jobs: list[PromptJob], use_tqdm: UseTqdm) -> list[RequestOutput]:
        """Decode all jobs; their results, in order."""
        with progress_bar(len(jobs), use_tqdm) as advance:
            for place, delta in self._run(jobs):
                if delta.finish_reason is not None and jobs[place].has_ended:
                    advance()
        return [job.result(self.tokenizer) for job in jobs]

    def _run(self, jobs: list[PromptJob]) -> Iterator[tuple[int, TextDelta]]:
        """Decode all jobs; yields (its place, delta). On any exit, unfinished requests are aborted."""
        requests = [request for job in jobs for request in job.requests]
        streams = {
            request.request_id: (place, stream)
            for place, job in enumerate(jobs)
            for request, stream in zip(job.requests, job.streams, strict=True)
        }
        open_ids = set(streams)
        self._open_ids |= open_ids
        try:
            self._backend.send([Submit(request) for request in requests])
            while open_ids:
                for message in self._messages(open_ids):
                    if message.request_id not in open_ids:
                        continue  # aborted earlier
                    place, stream = streams[message.request_id]
                    if message.error is not None:
                        error = message.error
                        raise in_prompt(error, f"prompts[{place}]") if isinstance(error, RequestError) else error
                    assert isinstance(message, Output)
                    delta = stream.push(message)
                    if delta.stopped:
                        self._backend.send([Abort(message.request_id)])
                    if delta.finish_reason is not None:
                        open_ids.discard(message.request_id)
                        self._open_ids.discard(message.request_id)
                    yield place, delta
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


def _one_of(sampling_params: Params, params: Params) -> Params:
    """sampling_params, or its former name."""
    if sampling_params is not None and params is not None:
        raise RequestError("params is the former name of sampling_params, and both are given; remove it", "params")
    return params if sampling_params is None else sampling_params


def _no_adapter(lora_request: object) -> None:
    if lora_request is not None:
        raise RequestError("lora_request: adapters are not loaded; merge one into the weights", "lora_request")
