"""A Service that says given texts and records its steps, as if heads and lookup had guessed most tokens."""

import asyncio

from medusa_dist.outputs import FinishReason, Output, SpeculationStats, StepRecord, TreeReason
from tests.support.fake_service import EOS, FakeService, ids_of

PORTION = 3  # two accepted drafts and the model's own token


def record(part, is_first, has_drafts):
    """A step with the right draft at each depth, a wrong one beside it, and lookup at depth 2."""
    if is_first or not has_drafts:
        reason = TreeReason.PROMPT if is_first else TreeReason.OFF
        return StepRecord((), (), (), (), (), len(part), 0, 0, 1, None, reason)
    num = len(part) - 1
    tokens = (*part[:num], 120, 121)
    parents = (*(-1, 0)[:num], -1, -1)
    drafters = (*(("heads",), ("lookup",))[:num], ("heads",), ("heads", "lookup"))
    chances = (*(0.75, 0.5)[:num], 0.125, 0.0625)
    accepted = tuple(range(num))
    return StepRecord(
        tokens, parents, chances, drafters, accepted, len(part), len(tokens), 7, 2, 1.5, TreeReason.BUDGET
    )


class Explained(FakeService):
    """texts: the answers, one after another; the last one again and again. pause_s: of a step."""

    def __init__(self, *texts):
        super().__init__()
        self.texts = list(texts)
        self.pause_s = 0.0
        self.max_model_len = 100_000

    def describe(self):
        return {**super().describe(), "tool_format": self.chat_format.name, "default_sampling_params": {"top_k": 40}}

    def tokens(self, request):
        return (*ids_of(self.text), EOS)

    async def answer(self, request):
        if self.before is not None:
            raise self.before
        if request.params.speculation:  # the same again without drafts
            self.text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        has_drafts = request.params.speculation
        ids = self.tokens(request)[: request.params.max_tokens]
        sizes = [1, *([PORTION if has_drafts else 1] * len(ids))]
        start = 0
        while start < len(ids):
            await asyncio.sleep(self.pause_s)
            part, is_first = ids[start : start + sizes.pop(0)], start == 0
            start += len(part)
            if self.between is not None and start > 4:
                raise self.between
            num_right = 0 if is_first or not has_drafts else len(part) - 1
            steps = (record(part, is_first, has_drafts),) if request.explain else ()
            is_last = start >= len(ids)
            reason = (FinishReason.STOP if ids[-1] == EOS else FinishReason.LENGTH) if is_last else None
            stats = SpeculationStats(1, 4 if num_right else 0, (1,) * num_right)
            heads = (*range(1, num_right + 1), *[0] * (len(part) - num_right))
            yield Output(
                request_id=request.request_id,
                token_ids=part,
                heads=heads,
                finish_reason=reason,
                stats=stats,
                steps=steps,
            )
        self.finished.append(request.request_id)
