"""Answering: how the answers of one chat call are written and read, if the model reasons or has tools.

Owns the joining of a request's tools and its wishes about thinking with the model's format. Not here: the fields
(schema/), formats, grammars and readers (text/tools/), the message (message.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medusa_dist.api.chat.message import ChatMessageBuilder
from medusa_dist.api.schema.messages import ChatMessage, as_text, linked
from medusa_dist.api.schema.requests import ChatRequest, TokenizeRequest
from medusa_dist.api.schema.tools import AskedTools, asked_tools
from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar
from medusa_dist.sampling_fields import GRAMMAR_WITH_BEAMS
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.harmony.channel_grammar import channel_grammar
from medusa_dist.text.harmony.channel_reader import MARKS, ChannelReader
from medusa_dist.text.harmony.history import reasoning_in_channels
from medusa_dist.text.token_text import special_texts
from medusa_dist.text.tools.answer_reader import AnswerReader
from medusa_dist.text.tools.chat_format import ChatFormat
from medusa_dist.text.tools.formats import ToolFormat
from medusa_dist.text.tools.plain_tools import without_tools
from medusa_dist.text.tools.template_reader import ResponseTemplate
from medusa_dist.text.tools.thinking import ThinkingChoice, ThinkingWish
from medusa_dist.text.tools.tool_grammar import AnswerShape, answer_grammar, token_marks

ID_LENGTH = 24  # of calls, where the template accepts any


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the chat template renders. tools: None where it has no place for them, or there are none."""

    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class Answering:
    """asked: the tools of the request; None: no calls. form: of calls, if there are tools.

    thinking: what the chat template is told about it. shows_reasoning: whether the message has the reasoning.
    """

    asked: AskedTools | None
    form: ToolFormat | None
    chat_format: ChatFormat
    thinking: ThinkingChoice = field(default_factory=lambda: ThinkingChoice({}))
    shows_reasoning: bool = True

    def template_kwargs(self, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Variables of the chat template. given: those of the request, which count where both have one."""
        return {**self.thinking.variables, **(given or {})}

    def conversation(self, messages: Sequence[ChatMessage]) -> Conversation:
        """The messages and tools of a request. Raises RequestError if the model's template has no place for them."""
        return self.conversation_of([message.turn() for message in messages])

    def conversation_of(self, turns: Sequence[dict[str, Any]]) -> Conversation:
        """The same of messages as templates get them, which are changed in place."""
        cut = self.chat_format.form.id_length if self.chat_format.form is not None else ID_LENGTH
        linked(turns, cut if cut < ID_LENGTH else None)
        if self.chat_format.has_channels:
            reasoning_in_channels(turns)
        shown = self.asked.shown if self.asked is not None else []
        has_calls = any(turn.get("tool_calls") or turn["role"] == "tool" for turn in turns)
        if self.chat_format.renders_tools or not (shown or has_calls):
            return Conversation(as_text(turns) if self.chat_format.text_arguments else turns, shown or None)
        return Conversation(without_tools(turns, shown, self.chat_format.tool_format()), None)

    def grammar(self, body: Grammar | None, prompt: str, tokenizer: Any) -> Grammar | None:
        """The grammar of the whole answer. body: of its text, if the request asks for one. prompt: as rendered."""
        if self.chat_format.has_channels:
            return self._channel_grammar(body, tokenizer)
        marks = self.chat_format.marks
        if self.asked is not None and self.form is None:
            self._check_not_enforced(body)
            return None
        if self.asked is None and (body is None or marks is None):
            return body
        shape = AnswerShape(
            form=self.form,
            schemas={} if self.asked is None else self.asked.schemas,
            must_call=self.asked is not None and self.asked.must_call,
            one_call=self.asked is not None and self.asked.one_call,
            marks=marks,
            is_reasoning=marks is not None and marks.is_open_after(prompt),
            has_body=body is not None,
        )
        param = body.param if self.asked is None and body is not None else "tools"
        return Grammar.answer(answer_grammar(shape, token_marks(tokenizer)), param, body)

    def _channel_grammar(self, body: Grammar | None, tokenizer: Any) -> Grammar | None:
        """The grammar of an answer in channels. Without tools and a body every answer is allowed."""
        asked = self.asked
        if asked is None:
            if body is None:
                return None
            return Grammar.answer(channel_grammar(AnswerShape(has_body=True), token_marks(tokenizer)), body.param, body)
        shape = AnswerShape(schemas=asked.schemas, must_call=asked.must_call, has_body=body is not None)
        return Grammar.answer(channel_grammar(shape, token_marks(tokenizer)), "tools", body)

    def _check_not_enforced(self, body: Grammar | None) -> None:
        """Raise RequestError for what needs a grammar of calls, which there is not."""
        asked = self.asked
        assert asked is not None
        needs = {
            "tool_choice": asked.must_call or len(asked.schemas) < len(asked.shown),
            "parallel_tool_calls": asked.one_call,
            body.param if body is not None else "": body is not None,
        }
        for name, is_needed in needs.items():
            if is_needed:
                raise RequestError(
                    f"{name} cannot be enforced together with tools: this model's calls are read by its tokenizer's "
                    "response template, which says nothing about what may come next; the config key tool_format can "
                    "name a format",
                    name,
                )

    def constrained(self, params: SamplingParams, prompt: str, tokenizer: Any) -> SamplingParams:
        """The params with the grammar of the whole answer. Raises RequestError for tools in a beam search."""
        if self.asked is not None and params.beam_width is not None:
            raise RequestError(
                f"tools cannot be used with beam_width: {GRAMMAR_WITH_BEAMS}; remove one of them", "tools"
            )
        grammar = self.grammar(params.grammar, prompt, tokenizer)
        return params if grammar is params.grammar else replace(params, grammar=grammar)

    @property
    def template(self) -> ResponseTemplate | None:
        """What reads the answers, if no format of ours does."""
        return self.chat_format.read_by_template(self.asked is not None)

    def message(self, prompt: str) -> ChatMessageBuilder:
        """A new message, for one choice. prompt: as rendered."""
        if self.chat_format.has_channels:
            by_channel = ChannelReader(() if self.asked is None else self.asked.schemas)
            return ChatMessageBuilder(by_channel, self.shows_reasoning)
        if self.template is not None:
            by_template = self.template.reader(prompt, None if self.asked is None else self.asked.shown)
            return ChatMessageBuilder(by_template, self.template.has_reasoning and self.shows_reasoning)
        marks = self.chat_format.marks
        is_reasoning = marks is not None and marks.is_open_after(prompt)
        schemas = None if self.asked is None else self.asked.schemas
        reader = AnswerReader(marks, is_reasoning, self.form, schemas)
        has_reasoning = marks is not None and self.shows_reasoning
        return ChatMessageBuilder(reader, has_reasoning, ID_LENGTH if self.form is None else self.form.id_length)

    def shown_ids(self, tokenizer: Any) -> frozenset[int]:
        """Special tokens that the reader must see in the text: the marks of calls and reasoning."""
        marks = self.chat_format.marks
        texts = [*(self.form.texts if self.form is not None else ()), *((marks.open, marks.close) if marks else ())]
        if self.template is not None:
            texts.append(self.template.text)
        if self.chat_format.has_channels:
            texts += MARKS
        if not texts:
            return frozenset()
        return frozenset(i for i, name in special_texts(tokenizer).items() if any(name in text for text in texts))


def answering(body: ChatRequest | TokenizeRequest, chat_format: ChatFormat) -> Answering:
    """How a request is answered. Raises RequestError for tools that cannot be used."""
    if not isinstance(body, ChatRequest):
        asked = asked_tools(body.tools, None, None)
        return Answering(asked, form_of(asked, chat_format), chat_format)
    asked = asked_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    form = form_of(asked, chat_format)
    thinking = chat_format.thinking.choose(_wish(body), chat_format.reasons)
    return Answering(asked, form, chat_format, thinking, body.include_reasoning is not False)


def form_of(asked: AskedTools | None, chat_format: ChatFormat) -> ToolFormat | None:
    """The format of the calls; None: there are none, or others read them. Raises RequestError."""
    if asked is None or chat_format.has_channels or chat_format.read_by_template(has_tools=True) is not None:
        return None
    return chat_format.tool_format()


def _wish(body: ChatRequest) -> ThinkingWish:
    options = body.thinking
    if options is None:
        return ThinkingWish(body.reasoning_effort)
    return ThinkingWish(body.reasoning_effort, options.type != "disabled", options.budget_tokens)
