"""Beam search on the demo model, in float32 on a CPU: against transformers' own, with and without drafts."""

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_dist import LLM, SamplingParams
from medusa_dist.bench.bench import PROMPTS
from medusa_dist.model.source.resolve_model import resolve_source

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODEL = "demo:smollm2-135m"
KINDS: list[dict] = [
    {"beam_width": 4},
    {"beam_width": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"beam_width": 2, "length_penalty": 2.0, "early_stopping": True},
    {"beam_width": 4, "repetition_penalty": 1.2, "min_tokens": 6},
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, dtype="float32", max_model_len=1024, max_running=16) as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(resolve_source(MODEL), dtype=torch.float32)


def of_transformers(model: PreTrainedModel, prompt: list[int], params: SamplingParams) -> list[tuple[int, ...]]:
    made = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        num_beams=params.beam_width,
        num_return_sequences=params.beam_width,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        repetition_penalty=params.repetition_penalty,
        pad_token_id=-7,
    )
    return [tuple(t for t in row if t != -7) for row in made[:, len(prompt) :].tolist()]


def test_beams_of_20_prompts_equal_transformers_with_and_without_drafts(llm: LLM, reference: PreTrainedModel) -> None:
    texts = PROMPTS.read_text().splitlines()[:20]
    assert len(texts) == 20
    # Short questions have short answers: half of the prompts are asked for one, so that some hypotheses end.
    texts = [text + " Answer in one word." if i % 2 else text for i, text in enumerate(texts)]
    prompts = [llm.chat_ids([{"role": "user", "content": text}]) for text in texts]
    num_drafted, num_stopped = 0, 0
    for i, prompt in enumerate(prompts):
        fields = {"max_tokens": 12} | KINDS[i % len(KINDS)]
        drafted, plain = (llm.generate([prompt], SamplingParams(speculation=on, **fields))[0] for on in (True, False))
        expected = of_transformers(reference, prompt, SamplingParams(**fields))
        assert [h.token_ids for h in plain.hypotheses] == expected, texts[i]
        assert drafted.hypotheses == plain.hypotheses, texts[i]
        print(f"{i}: {drafted.stats.tokens_per_step:.2f} levels a step; {drafted.text!r}", flush=True)
        num_drafted += drafted.stats.num_drafted
        num_stopped += sum(h.finish_reason == "stop" for h in plain.hypotheses)
    print(f"{num_drafted} tokens drafted; {num_stopped} hypotheses ended by themselves")
    assert num_drafted > 0 and num_stopped > 0


def test_beams_and_samples_in_one_batch_equal_each_alone(llm: LLM) -> None:
    """Beams and samples in one batch, each as it is alone."""
    prompts = [llm.chat_ids([{"role": "user", "content": t}]) for t in PROMPTS.read_text().splitlines()[:6]]
    each = [
        SamplingParams(max_tokens=12, **({"beam_width": 3} if i % 2 else {"temperature": 0.8, "seed": i}))
        for i in range(6)
    ]
    alone = [llm.generate([prompt], params)[0] for prompt, params in zip(prompts, each, strict=True)]
    together = llm.generate(prompts, each)
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [r.hypotheses for r in together] == [r.hypotheses for r in alone]
