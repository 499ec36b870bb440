"""The grammar of an answer in harmony: reasoning and preambles, then the answer or one call.

Owns the order of the messages, in llguidance's Lark syntax. Not here: arguments (text/tools/argument_rules.py), reading
(channel_reader.py). A call ends the answer: its end mark is an end-of-sequence token of these models.
"""

from collections.abc import Mapping

from medusa_dist.text.harmony.channel_reader import CHANNEL, CONSTRAIN, END, FUNCTIONS, MESSAGE, START
from medusa_dist.text.tools.argument_rules import argument_rules
from medusa_dist.text.tools.tool_grammar import BODY, AnswerShape


def channel_grammar(shape: AnswerShape, token_ids: Mapping[str, int]) -> str:
    """Lark for all answers of a shape; its form and marks do not count. token_ids: of the marks, each one token."""
    mark = {text: f"<[{token_ids[text]}]>" for text in (START, CHANNEL, MESSAGE, CONSTRAIN, END)}
    answers = [] if shape.must_call else [f'{mark[CHANNEL]} "final" {mark[MESSAGE]} {_final(shape)}']
    rules = ["TEXT: /(.|\\n)*/"]
    for i, (name, schema) in enumerate(shape.schemas.items()):
        head = f'{mark[CHANNEL]} "commentary to={FUNCTIONS}{name} " {mark[CONSTRAIN]} "json" {mark[MESSAGE]}'
        answers.append(f"{head} arguments_{i}")
        rules.append(argument_rules("json", f"arguments_{i}", schema).rstrip())
    kinds = '("analysis" | "commentary")' if shape.schemas else '"analysis"'
    before = f'{mark[CHANNEL]} {kinds} {mark[MESSAGE]} TEXT {mark[END]} {mark[START]} "assistant"'
    return "\n".join([f"start: before* ({' | '.join(answers)})", f"before: {before}", *rules]) + "\n"


def _final(shape: AnswerShape) -> str:
    return f"@{BODY}" if shape.has_body else "TEXT"
