"""Chat templates of the model families whose tool calls are known, and answers of these families.

Written anew, in the shape of what the models' authors publish: how tools are listed, and how calls of a history and
results are written. What has nothing to do with tools is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                    "days": {"type": "integer"},
                },
                "required": ["location"],
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]
PARIS: tuple[str, Mapping[str, Any]] = ("get_current_weather", {"location": "Paris, France", "unit": "celsius"})
OSLO: tuple[str, Mapping[str, Any]] = ("get_current_weather", {"location": "Oslo", "days": 2})
TIME: tuple[str, Mapping[str, Any]] = ("get_time", {})


@dataclass(frozen=True, slots=True)
class Family:
    """template: of the family. answer: as its models write it. content, calls: what it means.

    history: how the template writes the calls of a history; usually as in the answer.
    """

    template: str
    answer: str
    calls: tuple[tuple[str, Mapping[str, Any]], ...]
    content: str = ""
    history: str | None = None


_TURNS = "{% for m in messages %}"
_CHATML_CALLS = (
    '{% for c in m.tool_calls or [] %}{% set c = c.function %}{{ \'\\n<tool_call>\\n{"name": "\' + c.name + '
    "'\", \"arguments\": ' }}{{ c.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}"
)
_CODER_CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\\n<tool_call>\\n<function=' + c.function.name + '>\\n' }}"
    "{% for k, v in c.function.arguments | items %}{{ '<parameter=' + k + '>\\n' }}"
    "{{ v if v is string else v | tojson }}{{ '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>\\n</tool_call>' }}{% endfor %}"
)
_LISTED = "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
_IM = "{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"

FAMILIES = {
    "hermes": Family(
        _LISTED + _TURNS + _IM + _CHATML_CALLS + "{{ '<|im_end|>\\n' }}{% endfor %}",
        '<tool_call>\n{"name": "get_current_weather", "arguments": {"location": "Paris, France", "unit": "celsius"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
        (PARIS, TIME),
    ),
    "qwen3_coder": Family(
        _LISTED + _TURNS + _IM + _CODER_CALLS + "{{ '<|im_end|>\\n' }}{% endfor %}",
        "I look it up.\n\n<tool_call>\n<function=get_current_weather>\n<parameter=location>\nOslo\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        (OSLO,),
        content="I look it up.\n\n",
    ),
    "llama3_json": Family(
        "{{ 'Environment: ipython\\n' if tools }}{% if tools %}{{ 'Respond in the format {\"name\": function name, "
        '"parameters": dictionary of argument name and its value}.\' }}{% endif %}' + _LISTED + _TURNS + "{% if m."
        "tool_calls %}{% set c = m.tool_calls[0].function %}{{ '{\"name\": \"' + c.name + '\", ' }}"
        "{{ '\"parameters\": ' }}{{ c.arguments | tojson }}{{ '}<|eot_id|>' }}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}",
        '{"name": "get_current_weather", "parameters": {"location": "Oslo", "days": 2}}',
        (OSLO,),
    ),
    "pythonic": Family(
        "{% if tools %}{{ 'You should only return the function call in the format [func_name1(params_name1="
        "params_value1, params_name2=params_value2), func_name2(params)]' }}{% endif %}" + _LISTED + _TURNS + "{% if m."
        "tool_calls %}{{ '[' }}{% for c in m.tool_calls %}{{ c.function.name + '(' }}{% for k, v in "
        "c.function.arguments | items %}{{ k + '=' }}{{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %}{{ ')' }}"
        "{{ ', ' if not loop.last }}{% endfor %}{{ ']' }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
        '[get_current_weather(location="Paris, France", unit="celsius"), get_time()]',
        (PARIS, TIME),
    ),
    "mistral": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.first %}{{ '[AVAILABLE_TOOLS]' }}"
        "{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
        "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}{% set f = "
        "c.function | tojson %}{{ f[:-1] + ', \"id\": \"' + c.id + '\"}' }}{{ ', ' if not loop.last }}{% endfor %}"
        "{{ ']' }}{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}{% endif %}"
        "{% endfor %}",
        '[TOOL_CALLS][{"name": "get_current_weather", "arguments": {"location": "Paris, France", "unit": "celsius"}}, '
        '{"name": "get_time", "arguments": {}}]',
        (PARIS, TIME),
        history='[TOOL_CALLS][{"name": "get_current_weather", "arguments": {"location": "Paris, France", "unit": '
        '"celsius"}, "id": "000000000"}, {"name": "get_time", "arguments": {}, "id": "000000001"}]',
    ),
    "mistral_v3": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.first %}{{ '[AVAILABLE_TOOLS] ' }}"
        "{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{% set f = c.function | tojson %}"
        "{{ f[:-1] + ', \"id\": \"' + c.id + '\"}' }}{{ ', ' if not loop.last }}{% endfor %}{{ ']' }}"
        "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}{% endif %}{% endfor %}",
        '[TOOL_CALLS] [{"name": "get_current_weather", "arguments": {"location": "Oslo", "days": 2}}]',
        (OSLO,),
        history='[TOOL_CALLS] [{"name": "get_current_weather", "arguments": {"location": "Oslo", "days": 2}, "id": '
        '"000000000"}]',
    ),
    "mistral_args": Family(
        "{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ '[TOOL_CALLS]' + "
        "c.function.name + '[ARGS]' }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}",
        '[TOOL_CALLS]get_current_weather[ARGS]{"location": "Paris, France", "unit": "celsius"}'
        "[TOOL_CALLS]get_time[ARGS]{}",
        (PARIS, TIME),
    ),
    "deepseek_v3": Family(  # takes arguments as JSON text
        _LISTED
        + _TURNS
        + "{% if m.tool_calls %}{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls %}"
        "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\\n```json\\n' + "
        "c.function.arguments + '\\n```<｜tool▁call▁end｜>' }}{{ '\\n' if not loop.last }}{% endfor %}"
        "{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_current_weather\n```json\n"
        '{"location": "Paris, France", "unit": "celsius"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function'
        "<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        (PARIS, TIME),
    ),
    "deepseek_v31": Family(  # takes arguments as JSON text
        _LISTED + _TURNS + "{% if m.tool_calls %}{{ m.content + '<｜tool▁calls▁begin｜>' }}{% for c in m.tool_calls %}"
        "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments }}"
        "{{ '<｜tool▁call▁end｜>' }}{% endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_current_weather<｜tool▁sep｜>"
        '{"location": "Oslo", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        (OSLO,),
        content="Let me see.",
    ),
}
