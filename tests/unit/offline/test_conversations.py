"""Tools of LLM.chat: what the request is, and the message that an output is read as."""

import json
from typing import Any

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.grammar import GrammarKind
from medusa_dist.offline.conversations import PlannedChat, chat_plan
from medusa_dist.offline.jobs import JobMaker
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.text.tools.chat_format import ChatFormat
from medusa_dist.text.tools.formats import FORMATS
from medusa_dist.text.tools.reasoning import REASONING
from tests.support.tool_cases import CALLS, SCHEMAS, marks_tokenizer, write_calls

TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
TOKENIZER = marks_tokenizer()
FACTS = {"default_sampling_params": {}, "max_model_len": 1000}


def outcome(text: str, form: ChatFormat, tools: Any = TOOLS, portion: int = 3, **fields: Any) -> Any:
    """The output of a chat whose model writes a text."""
    maker = JobMaker(TOKENIZER, None, FACTS)
    plan = chat_plan(tools, None, None, form)
    (job,) = maker.make(maker.read([[1, 2]]), SamplingParams(**fields), None, None, [PlannedChat(plan, "")])
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    for start in range(0, len(ids), portion):
        reason = FinishReason.STOP if start + portion >= len(ids) else None
        part = tuple(ids[start : start + portion])
        job.streams[0].push(
            Output(request_id=job.requests[0].request_id, token_ids=part, finish_reason=reason, heads=(0,) * len(part))
        )
    return job.result(TOKENIZER).outputs[0]


@pytest.mark.parametrize("name", ["hermes", "mistral_args", "pythonic"])
def test_calls_of_an_output_are_those_of_its_text_which_stays_as_the_model_wrote_it(name: str) -> None:
    form = FORMATS[name]
    written = write_calls(form, CALLS)
    output = outcome(written, ChatFormat(form))
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in output.tool_calls] == [*CALLS]
    assert output.message == {"role": "assistant", "content": None, "refusal": None, "tool_calls": output.tool_calls}
    assert output.text == written.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")  # special tokens, as in vLLM


def test_message_without_tools_has_reasoning_and_content_apart() -> None:
    output = outcome("<think>\nhm\n</think>\n\nyes", ChatFormat(None, REASONING["think"]), tools=None)
    assert output.message == {"role": "assistant", "content": "yes", "refusal": None, "reasoning_content": "hm"}
    assert output.text == "<think>\nhm\n</think>\n\nyes" and output.tool_calls == []


def test_text_before_a_stop_string_is_the_message() -> None:
    output = outcome("one two three", ChatFormat(), tools=None, stop=(" t",))
    assert output.message["content"] == output.text == "one"


def test_tools_are_enforced_by_a_grammar_and_not_with_beams() -> None:
    maker, form = JobMaker(TOKENIZER, None, FACTS), ChatFormat(FORMATS["hermes"])
    chat = PlannedChat(chat_plan(TOOLS, "required", False, form), "")
    (job,) = maker.make(maker.read([[1]]), SamplingParams(), None, None, [chat])
    assert job.requests[0].params.grammar.kind is GrammarKind.ANSWER
    with pytest.raises(RequestError, match="tools cannot be used with beam_width"):
        maker.make(maker.read([[1]]), SamplingParams(beam_width=2), None, None, [chat])


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([{}], None, r"tools\[0\].function: Field required"),
        ([{"type": "function", "function": {"name": "a b"}}], None, r"tools\[0\].function.name: String should match"),
        ([{"type": "web_search"}], None, "tools of type 'web_search' are not supported"),
        (TOOLS[:1] * 2, None, "two tools have the same name"),
        (TOOLS, "always", "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "f"}}, "there is no tool 'f'"),
    ],
)
def test_wrong_tools_are_refused_by_name(tools: Any, choice: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        chat_plan(tools, choice, None, ChatFormat(FORMATS["hermes"]))
