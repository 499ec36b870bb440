"""Wishes about thinking as variables of templates; the templates have the shapes that published ones have."""

import pytest

from medusa_dist.text.chat_template import encode_chat
from medusa_dist.text.tools.chat_format import chat_format
from medusa_dist.text.tools.thinking import LEVELS, ThinkingWish, thinking_variables
from tests.support.tiny_tokenizers import byte_tokenizer

SWITCHED = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
OFF_BY_DEFAULT = "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
ANY_LEVEL = (
    "{% macro system() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "Reasoning: {{ reasoning_effort }}{% endmacro %}{{ system() }}"
)
TWO_LEVELS = (
    "{% set effort = reasoning_effort if reasoning_effort is defined else 'none' %}"
    "{% if effort not in ['none', 'high'] %}{{ raise_exception('unknown effort') }}{% endif %}Effort: {{ effort }}"
)
THREE_LEVELS = (
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% elif reasoning_effort == 'low' %}1{% elif reasoning_effort == 'medium' %}2"
    "{% elif reasoning_effort == 'xhigh' %}4{% endif %}"
)
BUDGET = "{{ 'none' if thinking_budget is defined and thinking_budget == 0 else thinking_budget }}"
ALWAYS = "<think>"
NEVER = "{{ messages[0].content }}"


def chosen(template: str, wish: ThinkingWish, reasons: bool = True):
    choice = thinking_variables([template]).choose(wish, reasons)
    return choice.variables, " ".join(choice.warnings)


@pytest.mark.parametrize(
    ("template", "effort", "variables", "warning"),
    [
        (SWITCHED, "none", {"enable_thinking": False}, ""),
        (SWITCHED, "low", {"enable_thinking": True}, "effort 'low' only turns thinking on"),
        (OFF_BY_DEFAULT, "none", {"thinking": False}, ""),
        (OFF_BY_DEFAULT, "high", {"thinking": True}, "effort 'high' only turns thinking on"),
        (ANY_LEVEL, "high", {"reasoning_effort": "high"}, ""),
        (ANY_LEVEL, "minimal", {"reasoning_effort": "minimal"}, ""),
        (ANY_LEVEL, "none", {}, "thinking is not turned off"),
        (TWO_LEVELS, "none", {"reasoning_effort": "none"}, ""),
        (TWO_LEVELS, "minimal", {"reasoning_effort": "high"}, "effort 'minimal' is taken as 'high'"),
        (TWO_LEVELS, "max", {"reasoning_effort": "high"}, "knows none, high"),
        (THREE_LEVELS, "none", {"enable_thinking": False}, ""),
        (THREE_LEVELS, "low", {"enable_thinking": True, "reasoning_effort": "low"}, ""),
        (THREE_LEVELS, "minimal", {"enable_thinking": True, "reasoning_effort": "low"}, "is taken as 'low'"),
        (THREE_LEVELS, "high", {"enable_thinking": True, "reasoning_effort": "xhigh"}, "is taken as 'xhigh'"),
        (BUDGET, "none", {"thinking_budget": 0}, ""),
        (BUDGET, "low", {}, "effort 'low' has no effect"),
        (ALWAYS, "none", {}, "thinking is not turned off"),
        (ALWAYS, "low", {}, "effort 'low' has no effect"),
    ],
)
def test_effort_goes_to_the_variables_that_the_template_reads(template, effort, variables, warning):
    got, said = chosen(template, ThinkingWish(effort))
    assert got == variables
    assert warning in said and bool(warning) == bool(said)


@pytest.mark.parametrize(
    ("template", "wish", "variables", "warning"),
    [
        (SWITCHED, ThinkingWish(is_on=False), {"enable_thinking": False}, ""),
        (OFF_BY_DEFAULT, ThinkingWish(is_on=True), {"thinking": True}, ""),
        (OFF_BY_DEFAULT, ThinkingWish("high", is_on=False), {"thinking": False}, "effort 'high'"),
        (TWO_LEVELS, ThinkingWish(is_on=False), {"reasoning_effort": "none"}, ""),
        (TWO_LEVELS, ThinkingWish(is_on=True), {}, ""),
        (BUDGET, ThinkingWish(is_on=True, budget=512), {"thinking_budget": 512}, ""),
        (SWITCHED, ThinkingWish(is_on=True, budget=512), {"enable_thinking": True}, "budget_tokens has no effect"),
        (ALWAYS, ThinkingWish(is_on=True), {}, ""),
    ],
)
def test_thinking_that_is_turned_on_or_off(template, wish, variables, warning):
    got, said = chosen(template, wish)
    assert got == variables
    assert warning in said and bool(warning) == bool(said)


def test_a_model_that_does_not_reason_says_so_unless_no_thinking_was_asked_for():
    for level in LEVELS[1:]:
        assert chosen(NEVER, ThinkingWish(level), False) == ({}, "thinking has no effect: the model does not reason")
    assert chosen(NEVER, ThinkingWish("none"), False) == ({}, "")
    assert chosen(NEVER, ThinkingWish(is_on=False), False) == ({}, "")


def test_nothing_asked_changes_nothing():
    for template in (SWITCHED, ANY_LEVEL, TWO_LEVELS, BUDGET, ALWAYS, NEVER):
        assert chosen(template, ThinkingWish()) == ({}, "")


def test_a_variable_that_only_one_of_several_templates_reads_is_not_used():
    found = thinking_variables([SWITCHED, NEVER])
    assert found.names == frozenset() and thinking_variables([]).names == frozenset()


@pytest.mark.parametrize("effort", LEVELS)
@pytest.mark.parametrize("template", [SWITCHED, OFF_BY_DEFAULT, ANY_LEVEL, TWO_LEVELS, THREE_LEVELS, BUDGET, ALWAYS])
def test_every_level_renders_with_every_template(template, effort):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    variables = chat_format(tokenizer, "auto", "auto").thinking.choose(ThinkingWish(effort), True).variables
    text, ids = encode_chat(tokenizer, [{"role": "user", "content": "Hi"}], chat_template_kwargs=variables)
    assert tokenizer.decode(ids) == text
    if "reasoning_effort" in variables and template in (ANY_LEVEL, TWO_LEVELS):
        assert text.endswith(f": {variables['reasoning_effort']}")
