"""The terminal view of an answer: nothing of the text is lost, and colours tell the heads."""

from types import SimpleNamespace

from medusa_dist.heads_tools.generate import coloured, summary
from medusa_dist.heads_tools.steps.colours import style_of
from medusa_dist.outputs import SpeculationStats
from medusa_dist.text.text_stream import TextDelta
from tests.support.tiny_tokenizers import byte_tokenizer

LLM = SimpleNamespace(tokenizer=byte_tokenizer(), facts={"speculation": "medusa: 2 heads"})


def ids(text: str) -> tuple[int, ...]:
    return tuple(LLM.tokenizer(text)["input_ids"])


def test_each_token_is_coloured_by_its_head() -> None:
    text = coloured(LLM, TextDelta(text="abc", token_ids=ids("abc"), heads=(1, 2, 0)))
    assert text.plain == "abc"
    assert [span.style for span in text.spans] == [style_of(1), style_of(2), style_of(0)]


def test_text_of_several_tokens_is_still_shown() -> None:
    held = TextDelta(text="é", token_ids=ids("é")[-1:], heads=(1,))
    assert coloured(LLM, held).plain == "é"


def test_summary_counts_tokens_steps_and_drafts_of_all_deltas() -> None:
    deltas = [
        TextDelta(text="ab", token_ids=(1, 2), heads=(1, 0), stats=SpeculationStats(1, 3, (1,))),
        TextDelta(text="c", token_ids=(3,), heads=(0,), stats=SpeculationStats(1, 2, (0,))),
    ]
    line = summary(deltas, 0.1, 2.0)
    assert line.startswith("3 tokens in 2 steps = 1.50 tokens/step; 1.5 tokens/s") and "1 of 5 drafts" in line
    assert summary([], 0.0, 1.0) == "no tokens"
