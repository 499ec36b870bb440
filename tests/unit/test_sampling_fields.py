"""Every field of SamplingParams does what it says, with speculation on and off, and both alike.

One row per field, found by introspection: a field without a row fails. Not here: which HTTP field sets which
(tests/unit/api/schema/test_fields.py), the fields of Request (priority, cache_salt: tests/unit/test_llm.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

from medusa_dist import LLM, SamplingParams
from medusa_dist.grammar import Grammar
from medusa_dist.llm import RequestOutput
from medusa_dist.outputs import FinishReason
from tests.support.tiny_llm import TREE, save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["the cat", "é", "a longer text, to be continued"]
EOS = 256
LOSSY = {"acceptance", "typical_epsilon", "typical_delta"}
Outputs = list[RequestOutput]


@dataclass(frozen=True)
class Row:
    """base: the other fields. value: of the field in question. shows(before, after): whether it did what it says.

    Where base or value depends on what the model says, they are functions of its greedy outputs.
    """

    value: Any
    shows: Callable[[RequestOutput, RequestOutput], bool]
    base: dict[str, Any] | Callable[[RequestOutput], dict[str, Any]] = field(default_factory=dict)
    everywhere: bool = False  # in each output; else in one at least


GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 24}
SAMPLED = {"temperature": 1.0, "seed": 1, "ignore_eos": True, "max_tokens": 24}
HOT = SAMPLED | {"temperature": 1.5}
TYPICAL = SAMPLED | {"acceptance": "typical", "typical_epsilon": 0.9, "typical_delta": 3.0}
BEAMS = {"beam_width": 3, "max_tokens": 10, "logit_bias": ((EOS, 4.0),)}


def has_new_tokens(before: RequestOutput, after: RequestOutput) -> bool:
    return before.token_ids != after.token_ids


def becomes_greedy(before: RequestOutput, after: RequestOutput) -> bool:
    return has_new_tokens(before, after) and after.token_ids == GREEDY_IDS[tuple(after.prompt_token_ids)]


def contains(output: RequestOutput, *sequences: tuple[int, ...]) -> bool:
    """Whether any of the sequences is in the output."""
    ids = output.token_ids
    return any(ids[i : i + len(part)] == part for part in sequences for i in range(len(ids)))


def has_more_variety(before: RequestOutput, after: RequestOutput) -> bool:
    return len(set(after.token_ids)) > len(set(before.token_ids))


def accepts_more(before: RequestOutput, after: RequestOutput) -> bool:
    return after.stats.num_drafted == 0 or after.stats.tokens_per_step > before.stats.tokens_per_step


def has_other_scores(before: RequestOutput, after: RequestOutput) -> bool:
    return [h.score for h in before.hypotheses] != [h.score for h in after.hypotheses]


def ends_early(greedy: RequestOutput) -> dict[str, Any]:
    return GREEDY | {"stop_token_ids": (greedy.token_ids[4],)}


ROWS: dict[str, Row] = {
    "n": Row(
        3,
        lambda a, b: (
            [o.index for o in b.outputs] == [0, 1, 2]
            and b.outputs[0] == a.outputs[0]
            and len({tuple(o.token_ids) for o in b.outputs}) == 3
        ),
        SAMPLED,
        True,
    ),
    "max_tokens": Row(5, lambda _, b: len(b.token_ids) == 5 and b.finish_reason is FinishReason.LENGTH, GREEDY, True),
    "min_tokens": Row(9, lambda a, b: len(a.token_ids) <= 5 and len(b.token_ids) >= 9, ends_early, True),
    "temperature": Row(1.2, has_new_tokens, GREEDY | {"seed": 3}, True),
    "top_p": Row(0.0, becomes_greedy, HOT, True),
    "top_k": Row(1, becomes_greedy, HOT, True),
    "min_p": Row(1.0, becomes_greedy, HOT, True),
    "presence_penalty": Row(2.0, has_more_variety, GREEDY),
    "frequency_penalty": Row(2.0, has_more_variety, GREEDY),
    "repetition_penalty": Row(2.0, has_more_variety, GREEDY),
    "logit_bias": Row(((65, 100.0),), lambda a, b: b.token_ids == (65,) * 24 != a.token_ids, SAMPLED, True),
    "allowed_token_ids": Row((65, 66, 70, 262), lambda _, b: set(b.token_ids) <= {65, 66, 70, 262}, SAMPLED, True),
    "bad_words": Row(
        lambda greedy: (greedy.token_ids[:1], greedy.token_ids[3:6], "th"),
        lambda a, b: contains(a, a.token_ids[3:6]) and not contains(b, a.token_ids[3:6], a.token_ids[:1], (259,)),
        GREEDY,
        True,
    ),
    "include_stop_str_in_output": Row(
        True,
        lambda a, b: b.text.startswith(a.text) and len(b.text) == len(a.text) + 2 and b.token_ids == a.token_ids,
        lambda greedy: GREEDY | {"stop": (greedy.text[6:8],)},
        True,
    ),
    "skip_special_tokens": Row(
        False, lambda a, b: a.text == "" and b.text == "<reserved>" * 24, GREEDY | {"logit_bias": ((258, 100.0),)}, True
    ),
    # Other decoders write blanks there; tests/unit/text/test_detokenizer.py has one.
    "spaces_between_special_tokens": Row(
        False,
        lambda a, b: a.text == b.text == "<reserved>" * 24,
        GREEDY | {"logit_bias": ((258, 100.0),), "skip_special_tokens": False},
        True,
    ),
    "seed": Row(2, has_new_tokens, SAMPLED, True),
    "stop": Row(
        lambda greedy: (greedy.text[6:8],),
        lambda a, b: a.text.startswith(b.text) and len(b.text) <= 6 and b.finish_reason is FinishReason.STOP,
        GREEDY,
        True,
    ),
    "stop_token_ids": Row(
        lambda greedy: (greedy.token_ids[4],),
        lambda a, b: len(b.token_ids) <= 5 and b.token_ids == a.token_ids[: len(b.token_ids)],
        GREEDY,
        True,
    ),
    "ignore_eos": Row(
        True,
        lambda a, b: a.token_ids == (EOS,) and a.finish_reason is FinishReason.STOP and b.token_ids == (EOS,) * 7,
        {"temperature": 0.0, "max_tokens": 7, "logit_bias": ((EOS, 100.0),)},
        True,
    ),
    "detokenize": Row(False, lambda a, b: a.text and not b.text and a.token_ids == b.token_ids, GREEDY, True),
    "logprobs": Row(2, lambda a, b: not a.logprobs and [len(e.top_ids) for e in b.logprobs] == [2] * 24, SAMPLED, True),
    "prompt_logprobs": Row(
        2,
        lambda a, b: (
            not a.prompt_logprobs
            and [e and len(e.top_ids) for e in b.prompt_logprobs] == [None] + [2] * (len(b.prompt_token_ids) - 1)
        ),
        SAMPLED,
        True,
    ),
    "speculation": Row(False, lambda a, b: b.stats.num_drafted == 0 and a.token_ids == b.token_ids, SAMPLED, True),
    "acceptance": Row("typical", lambda a, b: accepts_more(a, b) and b.acceptance == "typical", SAMPLED),
    "typical_epsilon": Row(1e-6, accepts_more, TYPICAL),
    "typical_delta": Row(1e-6, accepts_more, TYPICAL),
    "beam_width": Row(3, lambda a, b: not a.hypotheses and len(b.hypotheses) == 3, GREEDY, True),
    "length_penalty": Row(-3.0, has_other_scores, BEAMS, True),
    "early_stopping": Row(True, has_other_scores, BEAMS),
    "grammar": Row(Grammar.regex("[0-9]{3}x"), lambda a, b: b.text[:3].isdigit() and b.text[3:] == "x", SAMPLED, True),
}
GREEDY_IDS: dict[tuple[int, ...], tuple[int, ...]] = {}  # by prompt; filled by `greedy`


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, one_thread: None):
    """With drafts and without: on, off."""
    folder = save_llm(tmp_path_factory.mktemp("bytes"))
    keys = {"dtype": "float32", "kv_cache_tokens": 1024, "max_running": 12}
    with (
        LLM(str(folder), heads=str(folder / "heads"), speculation=TREE, **keys) as on,
        LLM(str(folder), speculation="off", **keys) as off,
    ):
        yield on, off


@pytest.fixture(scope="module")
def greedy(engines: tuple[LLM, LLM]) -> Outputs:
    outputs = engines[1].generate(PROMPTS, SamplingParams(**GREEDY))
    GREEDY_IDS.update({tuple(output.prompt_token_ids): output.token_ids for output in outputs})
    return outputs


def test_every_sampling_param_has_a_row() -> None:
    assert set(ROWS) == {f.name for f in fields(SamplingParams)}


def decided(output: RequestOutput) -> tuple:
    """What must not depend on speculation."""
    scores = (output.logprobs, output.prompt_logprobs, output.hypotheses)
    return output.token_ids, output.text, output.finish_reason, *scores


@pytest.mark.parametrize("name", ROWS)
def test_sampling_field_takes_effect_alike_with_and_without_speculation(
    engines: tuple[LLM, LLM], greedy: Outputs, name: str
) -> None:
    row = ROWS[name]
    bases = [row.base(output) if callable(row.base) else dict(row.base) for output in greedy]
    values = [row.value(output) if callable(row.value) else row.value for output in greedy]
    before = [SamplingParams(**base) for base in bases]
    after = [SamplingParams(**(base | {name: value})) for base, value in zip(bases, values, strict=True)]
    results = []
    for engine in engines:
        was, now = engine.generate(PROMPTS, before), engine.generate(PROMPTS, after)
        shown = [row.shows(a, b) for a, b in zip(was, now, strict=True)]
        assert all(shown) if row.everywhere else any(shown), (name, shown)
        results.append((was, now))
    for on, off in zip(*results, strict=True):
        if (on is results[0][1] and name in LOSSY) or LOSSY & set(bases[0]):
            continue  # outside the promise by name
        assert [decided(output) for output in on] == [decided(output) for output in off]
        assert sum(output.stats.num_drafted for output in off) == 0
    assert sum(output.stats.num_drafted for outputs in results[0] for output in outputs) > 0
