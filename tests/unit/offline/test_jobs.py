"""From prompts and sampling parameters to requests."""

import pytest

from medusa_dist.errors import RequestError
from medusa_dist.offline.jobs import JobMaker
from medusa_dist.outputs import Output
from medusa_dist.request import choice_seed
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_tokenizers import byte_tokenizer, sentencepiece_tokenizer

TOKENIZER = byte_tokenizer()
FACTS = {"default_sampling_params": {}, "max_model_len": 100}


def seeds(maker: JobMaker, *params: SamplingParams) -> list[list[int]]:
    jobs = maker.make(maker.read(["a"] * len(params)), list(params), None, None)
    return [[request.seed for request in job.requests] for job in jobs]


def test_first_of_n_outputs_has_the_seed_and_the_others_derived_ones() -> None:
    assert seeds(JobMaker(TOKENIZER, None, FACTS), SamplingParams(n=3, seed=7)) == [
        [7, choice_seed(7, 1), choice_seed(7, 2)],
    ]


def test_llm_seed_decides_all_drawn_seeds() -> None:
    drawn = [SamplingParams(n=2), SamplingParams(), SamplingParams(seed=3)]
    first, again = seeds(JobMaker(TOKENIZER, 5, FACTS), *drawn), seeds(JobMaker(TOKENIZER, 5, FACTS), *drawn)
    other, free = seeds(JobMaker(TOKENIZER, 6, FACTS), *drawn), seeds(JobMaker(TOKENIZER, None, FACTS), *drawn)
    assert first == again and first[2] == other[2] == free[2] == [3]
    numbers = [seed for found in (first, other, free) for job in found[:2] for seed in job]
    assert len(set(numbers)) == len(numbers) == 9


def test_requests_have_unique_names_and_copies_of_the_params() -> None:
    maker, params = JobMaker(TOKENIZER, None, FACTS), SamplingParams(n=2, max_tokens=5)
    jobs = [job for _ in range(2) for job in maker.make(maker.read(["a", "b"]), params, None, None)]
    requests = [request for job in jobs for request in job.requests]
    params.max_tokens = 9
    assert len({request.request_id for request in requests}) == 8
    assert {(request.params.n, request.params.max_tokens) for request in requests} == {(1, 5)}


def test_beam_search_is_one_request_with_its_n() -> None:
    maker = JobMaker(TOKENIZER, None, FACTS)
    (job,) = maker.make(maker.read("a"), SamplingParams(n=2, beam_width=3), None, None)
    assert [request.params.n for request in job.requests] == [2]


def test_cache_salt_of_a_prompt_overrides_that_of_the_call() -> None:
    maker = JobMaker(TOKENIZER, None, FACTS)
    prompts = maker.read(["a", {"prompt": "a", "cache_salt": "own"}])
    jobs = maker.make(prompts, None, [4, 5], "all")
    assert [(job.requests[0].cache_salt, job.requests[0].priority) for job in jobs] == [("all", 4), ("own", 5)]


def test_tokenizer_options_are_applied_or_refused_by_name() -> None:
    maker = JobMaker(TOKENIZER, None, FACTS)
    assert maker.read("abcdef", {"truncation": True, "max_length": 2})[0].ids == maker.read("ab")[0].ids
    with pytest.raises(RequestError, match="tokenization_kwargs: padding is not supported; known: add_special_tokens"):
        maker.read("a", {"padding": True})


def test_sampling_params_of_wrong_type_or_number_are_refused() -> None:
    maker = JobMaker(TOKENIZER, None, FACTS)
    with pytest.raises(RequestError, match="sampling_params must be SamplingParams, got 3"):
        maker.make(maker.read("a"), [3], None, None)
    with pytest.raises(RequestError, match="sampling_params: 2 given for 1 prompts"):
        maker.make(maker.read("a"), [SamplingParams()] * 2, None, None)


def test_output_keeps_its_first_blank_after_a_text_not_after_ids() -> None:
    """A sentencepiece model's first word keeps its blank after a text, as in vLLM; an answer to messages has none."""
    tokenizer = sentencepiece_tokenizer()
    maker = JobMaker(tokenizer, None, FACTS)
    words = tuple(tokenizer("the", add_special_tokens=False)["input_ids"])
    texts = []
    for prompt in ("the", {"prompt_token_ids": words}):
        (job,) = maker.make(maker.read(prompt), None, None, None)
        texts.append(job.streams[0].push(Output(request_id="r", token_ids=words, heads=(0,) * len(words))).text)
    assert texts == [" the", "the"]
