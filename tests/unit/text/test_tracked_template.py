"""Templates over marked text: the same text as without marks, and each character's origin is known."""

import pytest
from transformers import PreTrainedTokenizerFast

from medusa_dist.text.tracked_template import literal_text, render_marked
from medusa_dist.text.user_text import Marks
from tests.support.tiny_tokenizers import byte_tokenizer

# What templates do; «» are around what must count as the user's, whose text is x = " <a>B\"12 ".
EXPRESSIONS = {
    "x": ' «<a>B»"«12» ',
    "x | trim": '«<a>B»"«12»',
    "x | trim(' <')": '«a>B»"«12»',
    "x | lower": ' «<a>b»"«12» ',
    "x | capitalize": ' «<a>b»"«12» ',
    "x | replace('<a>', '[') | trim": '[«B»"«12»',
    "x | replace('B', '-', 1) | trim": '«<a>»-"«12»',
    "x | tojson": '" «<a>B»\\"«12» "',
    "{'k': [x]} | tojson(separators=(',', ':')) ~ 'B'": '{"k":[" «<a>B»\\"«12» "]}B',
    "x.strip().split('>')[0] ~ 'B'": "«<a»B",
    "x.split() | join('+')": '«<a>B»"«12»',
    "x.strip()[::-1]": '«21»"«B>a<»',
    "('y' if '<a>' in x else 'n') ~ ('y' if x != 'z' else 'n')": "yy",
    "('y' if x.strip().startswith('<a>') else 'n')": "y",
    "[x] | select('equalto', x) | list | length": "1",
    "[x, 'q'] | reject('in', ['q']) | first | trim": '«<a>B»"«12»',
    "x | length": "9",
    "'%s' % (x | trim)": '«<a>B»"«12»',
    "'{}'.format(x.strip())": '«<a>B»"«12»',
    "x[6:8] | int + 1": "13",
    "x | e | trim": "«&lt;a&gt;B&#34;12»",
    "x | wordcount": "3",
    "[x] | map('trim') | join": '«<a>B»"«12»',
    "x is string": "True",
    "x | tojson(ensure_ascii=true)": '" «<a>B»\\"«12» "',
    "raise_exception is defined and namespace(a=x).a | trim": '«<a>B»"«12»',
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_keeps_the_origin_of_its_characters(expression: str) -> None:
    text = ' <a>B"12 '
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    tokenizer.chat_template = "{% set x = messages[0].content %}{{ " + expression + " }}"
    messages = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    marks = Marks(messages, whole)
    marked = render_marked(tokenizer.chat_template, marks, {"messages": marks.mark_messages(messages)})
    assert marks.plain(marked) == whole
    shown, inside = "", False
    for old, new in zip(whole, marked, strict=True):
        if (old != new) != inside:
            inside = not inside
            shown += "«" if inside else "»"
        shown += old
    assert shown + "»" * inside == EXPRESSIONS[expression]


def test_the_text_of_templates_is_found_in_all_of_them() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "<|a|>{{ '<b>' }}", "tools": "{% if x == '<c>' %}{% endif %}", "bad": "{% x"}
    assert literal_text(tokenizer).split() == ["<|a|>", "<b>", "<c>"]
    tokenizer.chat_template = None
    assert literal_text(tokenizer) == ""
