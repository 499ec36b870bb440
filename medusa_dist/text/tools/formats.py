"""ToolFormat: how a model family writes tool calls.

Owns the table of formats and which one a chat template implies. Not here: grammars (tool_grammar.py), reading calls
(call_reader.py). Sources: the chat templates that the models' authors publish.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Arguments = Literal["json", "python", "xml"]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls as text: opening, call, separator, call, ..., closing. A call is begin, name, middle, arguments, end.

    opening: what precedes the first call; empty: nothing does.
    arguments: json: an object; python: keyword arguments; xml: one element per argument.
    is_whole_answer: calls are the whole answer, with no text before them.
    bare_mark: a token that some models write before calls that are the whole answer.
    id_length: letters and digits in the id of a call; some templates accept one length only.
    """

    name: str
    begin: str
    middle: str
    end: str
    opening: str = ""
    separator: str = ""
    closing: str = ""
    arguments: Arguments = "json"
    is_whole_answer: bool = False
    bare_mark: str = ""
    id_length: int = 24

    @property
    def mark(self) -> str:
        """What in the text of an answer starts calls: the first token of a format that allows text before them."""
        found = re.match(r"<[^>]*>|\[[^\]]*\]", self.opening + self.begin)
        assert found is not None or self.is_whole_answer
        return "" if found is None else found[0]

    def answers(self, names: Iterable[str]) -> list[str]:
        """How an answer starts that consists of calls, by tool; empty for formats with text before calls."""
        if not self.is_whole_answer:
            return []
        plain = [f"{self.opening}{self.begin}{name}{self.middle}" for name in names]
        return plain + ([self.bare_mark + text for text in plain] if self.bare_mark else [])

    @property
    def texts(self) -> tuple[str, ...]:
        """All literal texts of the format."""
        return (self.bare_mark, self.opening, self.begin, self.middle, self.end, self.separator, self.closing)

    def write(self, calls: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
        """Calls, each a name and arguments, as a model with this format writes them."""
        texts = [f"{self.begin}{name}{self.middle}{self._arguments(values)}{self.end}" for name, values in calls]
        return self.opening + self.separator.join(texts) + self.closing

    def _arguments(self, values: Mapping[str, Any]) -> str:
        match self.arguments:
            case "json":
                return json.dumps(values, ensure_ascii=False)
            case "python":
                return ", ".join(f"{key}={value!r}" for key, value in values.items())
            case "xml":
                texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
                return "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())


FORMATS = {
    found.name: found
    for found in (
        ToolFormat(  # Hermes 2 and 3, Qwen2.5, Qwen3, SmolLM3
            name="hermes",
            begin='<tool_call>\n{"name": "',
            middle='", "arguments": ',
            end="}\n</tool_call>",
            separator="\n",
        ),
        ToolFormat(  # Qwen3-Coder, Qwen3.5
            name="qwen3_coder",
            begin="<tool_call>\n<function=",
            middle=">\n",
            end="</function>\n</tool_call>",
            separator="\n",
            arguments="xml",
        ),
        ToolFormat(  # Llama 3.1, 3.2, 3.3
            name="llama3_json",
            begin='{"name": "',
            middle='", "parameters": ',
            end="}",
            separator="; ",
            is_whole_answer=True,
            bare_mark="<|python_tag|>",
        ),
        ToolFormat(  # Llama 4, ToolACE
            name="pythonic",
            opening="[",
            begin="",
            middle="(",
            end=")",
            separator=", ",
            closing="]",
            arguments="python",
            is_whole_answer=True,
        ),
        ToolFormat(  # Mistral Nemo, Small 3
            name="mistral",
            opening="[TOOL_CALLS][",
            begin='{"name": "',
            middle='", "arguments": ',
            end="}",
            separator=", ",
            closing="]",
            id_length=9,
        ),
        ToolFormat(  # Mistral 7B v0.3, Mixtral 8x22B: sentencepiece, with a blank after the mark
            name="mistral_v3",
            opening="[TOOL_CALLS] [",
            begin='{"name": "',
            middle='", "arguments": ',
            end="}",
            separator=", ",
            closing="]",
            id_length=9,
        ),
        ToolFormat(  # Mistral Small 3.2, Magistral, Devstral
            name="mistral_args", begin="[TOOL_CALLS]", middle="[ARGS]", end="", id_length=9
        ),
        ToolFormat(  # DeepSeek V3, R1
            name="deepseek_v3",
            opening="<｜tool▁calls▁begin｜>",
            begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            middle="\n```json\n",
            end="\n```<｜tool▁call▁end｜>",
            separator="\n",
            closing="<｜tool▁calls▁end｜>",
        ),
        ToolFormat(  # DeepSeek V3.1
            name="deepseek_v31",
            opening="<｜tool▁calls▁begin｜>",
            begin="<｜tool▁call▁begin｜>",
            middle="<｜tool▁sep｜>",
            end="<｜tool▁call▁end｜>",
            closing="<｜tool▁calls▁end｜>",
        ),
    )
}

# Texts of a chat template that imply a format: the first entry whose texts all occur decides.
_IMPLIED_BY = (
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>",), "hermes"),
    (("[TOOL_CALLS]", "[ARGS]"), "mistral_args"),
    (("[TOOL_CALLS] [",), "mistral_v3"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek_v3"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("[func_name1(",), "pythonic"),
    (("tools", "ipython", '"parameters"'), "llama3_json"),
)


def implied_format(chat_template: str) -> ToolFormat | None:
    """The format in which a chat template writes calls; None: none that is known."""
    for texts, name in _IMPLIED_BY:
        if all(text in chat_template for text in texts):
            return FORMATS[name]
    return None
