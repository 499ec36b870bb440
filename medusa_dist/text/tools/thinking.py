"""Thinking: what a request says about it, as variables of the model's chat template.

Owns which variables templates have for it, and what is said of a wish that has no variable. Not here: the marks around
reasoning (reasoning.py), the fields of a request (api/schema/requests.py). How much a model thinks is a hint in all
APIs that have it, so nothing is refused: what has no effect is said in the answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medusa_dist.text.template_variables import texts_of, variables_of

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
LEVELS: tuple[str, ...] = get_args(Effort)  # from the least to the most
OFF = "none"
SWITCHES = (
    "enable_thinking",  # Qwen3, GLM, SmolLM3, Hunyuan, Gemma 4
    "thinking",  # DeepSeek V3.1, Granite, Kimi K2.5
)
LEVEL = "reasoning_effort"  # gpt-oss, Mistral Small 4, Qwen3.8
BUDGET = "thinking_budget"  # Seed-OSS: a number of tokens, 0 for none


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """What a request asks for. effort: one of LEVELS. is_on: whether to think at all; None: as the effort says.

    budget: tokens to think, about. None: the model decides.
    """

    effort: str | None = None
    is_on: bool | None = None
    budget: int | None = None

    @property
    def thinks(self) -> bool | None:
        """Whether the model shall think; None: as it does by itself."""
        if self.is_on is None and self.effort is not None:
            return self.effort != OFF
        return self.is_on


@dataclass(frozen=True, slots=True)
class ThinkingChoice:
    """variables: for the chat template. warnings: what has no effect, one sentence each, for the answer."""

    variables: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ThinkingVariables:
    """names: those of the table above that the template reads. levels: those it tells apart; empty: it takes any."""

    names: frozenset[str] = frozenset()
    levels: tuple[str, ...] = ()

    def choose(self, wish: ThinkingWish, reasons: bool) -> ThinkingChoice:
        """The variables for a wish. reasons: the model writes reasoning, whether or not it can be told about it."""
        thinks, variables = wish.thinks, dict[str, Any]()
        if thinks is not None:
            variables |= {name: thinks for name in SWITCHES if name in self.names}
        if BUDGET in self.names and (thinks is False or wish.budget is not None):
            variables[BUDGET] = 0 if thinks is False else wish.budget
        effort = OFF if thinks is False and wish.effort is None else wish.effort
        level = self._level(effort)
        if level is not None:
            variables[LEVEL] = level
        if not (self.names or reasons):
            no_effect = ("thinking has no effect: the model does not reason",) if thinks else ()
            return ThinkingChoice(variables, no_effect)
        warnings = []
        if thinks is False and not variables:
            warnings.append("thinking is not turned off: the model's chat template has no variable for that")
        if wish.effort not in (None, OFF, level):
            warnings.append(self._about_level(str(wish.effort), level, bool(variables)))
        if wish.budget is not None and BUDGET not in self.names and thinks is not False:
            warnings.append("budget_tokens has no effect: the model's chat template has no variable for it")
        return ThinkingChoice(variables, tuple(warnings))

    def _level(self, effort: str | None) -> str | None:
        """The level that the template gets: the asked one, or the nearest of those it tells apart."""
        if effort is None or LEVEL not in self.names:
            return None
        if effort == OFF:
            return OFF if OFF in self.levels else None
        known = [level for level in self.levels if level != OFF]
        if not known or effort in known:
            return effort
        asked = LEVELS.index(effort)
        return min(reversed(known), key=lambda level: abs(LEVELS.index(level) - asked))

    def _about_level(self, asked: str, used: str | None, is_on: bool) -> str:
        if used is not None:
            return f"effort {asked!r} is taken as {used!r}: the model's chat template knows {', '.join(self.levels)}"
        effect = "only turns thinking on" if is_on else "has no effect"
        return f"effort {asked!r} {effect}: the model's chat template has no variable for it"


def thinking_variables(templates: Iterable[str]) -> ThinkingVariables:
    """What all chat templates of a model read. A template that compares with one level only takes any."""
    listed = list(templates)
    if not listed:
        return ThinkingVariables()
    names = frozenset.intersection(*(variables_of(template) for template in listed))
    texts = frozenset.intersection(*(texts_of(template) for template in listed))
    levels = tuple(level for level in LEVELS if level in texts)
    has_levels = LEVEL in names and (len(levels) > 1 or levels == (OFF,))
    return ThinkingVariables(names & {*SWITCHES, LEVEL, BUDGET}, levels if has_levels else ())
