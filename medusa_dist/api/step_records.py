"""Step records as clients get them, for requests with `explain`.

Owns their JSON and its documented schema. Not here: what is recorded and its bounds (engine/state/step_notes.py).
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from medusa_dist.outputs import StepRecord, TreeReason
from medusa_dist.text.token_text import token_text

_DIGITS = 4
_STRICT = ConfigDict(extra="forbid")


class ChosenToken(BaseModel):
    """An output token. text: what it adds to the whole text, reasoning and tool calls included."""

    model_config = _STRICT
    id: int
    text: str


class DraftedToken(BaseModel):
    """A draft token that the step verified."""

    model_config = _STRICT
    id: int
    text: str = Field(description="of this token alone")
    parent: int = Field(description="index of the draft before it; -1: the last token before the step")
    confidence: float | None = Field(description="chance that it is accepted if its parent is, as calibrated")
    drafters: list[str] = Field(description='who guessed it: "heads", "lookup"; empty if a grammar forced it')


class StepReport(BaseModel):
    """One step: the drafts that the model verified in one pass, and the tokens that it chose."""

    model_config = _STRICT
    tokens: list[ChosenToken] = Field(description="accepted drafts first, then the model's own token")
    drafts: list[DraftedToken] = Field(
        description="parents first; of a large tree the first 64, and those accepted. Depth k of the tree is where "
        "head k guesses"
    )
    accepted: list[int] = Field(description="indices of the accepted drafts, in the order of tokens")
    num_drafts: int = Field(description="verified drafts")
    num_offered: int = Field(description="drafts on offer, before it was decided how many pay")
    num_sequences: int = Field(description="sequences that the step decoded together")
    speed_up: float | None = Field(
        description="predicted speed of the step over one without drafts, for all its sequences; null if nothing was "
        "drafted, or no cost was measured"
    )
    reason: TreeReason = Field(description="why so many drafts were verified, and no more")


StepList = Annotated[
    list[StepReport] | None,
    Field(description="with explain: the steps that chose the first 2048 tokens; in a stream, those of the chunk"),
]


def step_reports(
    tokenizer: Any, steps: Sequence[StepRecord], token_ids: Sequence[int], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """One entry per step, as StepReport. token_ids, texts: the tokens that these steps chose, and what each adds to the
    text; further ones are left out.

    The last step has fewer tokens than it chose if a stop string ended the output within it.
    """
    pairs = iter(list(zip(token_ids, texts, strict=True)))
    return [_report(tokenizer, step, pairs) for step in steps]


def _report(tokenizer: Any, step: StepRecord, pairs: Iterator[tuple[int, str]]) -> dict[str, Any]:
    chosen = [pair for _, pair in zip(range(step.num_tokens), pairs, strict=False)]
    return {
        "tokens": [{"id": token_id, "text": text} for token_id, text in chosen],
        "drafts": [_draft(tokenizer, step, place) for place in range(len(step.tokens))],
        "accepted": list(step.accepted[: len(chosen)]),
        "num_drafts": step.num_drafts,
        "num_offered": step.num_offered,
        "num_sequences": step.num_sequences,
        "speed_up": None if step.speed_up is None else round(step.speed_up, _DIGITS),
        "reason": step.reason,
    }


def _draft(tokenizer: Any, step: StepRecord, place: int) -> dict[str, Any]:
    return {
        "id": step.tokens[place],
        "text": token_text(tokenizer, step.tokens[place])[0],
        "parent": step.parents[place],
        "confidence": round(step.chances[place], _DIGITS) if step.chances else None,
        "drafters": list(step.drafters[place]),
    }
