"""LLM: text in, text out, on a tiny model with a byte tokenizer."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from medusa_dist import LLM, SamplingParams
from medusa_dist import llm as llm_module
from medusa_dist.errors import ConfigError, HeadsError, ModelError, RequestError
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request, choice_seed
from tests.support.tiny_llm import TREE, save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["the cat", "é", "a longer text, to be continued"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llm(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def llm(folder: Path):
    """Speculation over a static tree, so that the clock has no say in how much is drafted."""
    with LLM(str(folder), heads=str(folder / "heads"), dtype="float32", speculation=TREE, kv_cache_tokens=1024) as made:
        yield made


@pytest.fixture(scope="module")
def plain(folder: Path):
    with LLM(str(folder), dtype="float32", speculation="off", kv_cache_tokens=1024) as made:
        yield made


def test_speculation_on_gives_the_outputs_of_speculation_off(llm: LLM, plain: LLM) -> None:
    each = [
        SamplingParams(temperature=0.0, max_tokens=40),
        SamplingParams(temperature=0.8, seed=4, max_tokens=30, logprobs=2),
        SamplingParams(temperature=1.0, top_p=0.8, repetition_penalty=1.2, seed=-2, max_tokens=20),
    ]
    on, off = llm.generate(PROMPTS, each), plain.generate(PROMPTS, each)
    for a, b in zip(on, off, strict=True):
        assert (a.token_ids, a.text, a.finish_reason, a.logprobs) == (b.token_ids, b.text, b.finish_reason, b.logprobs)
        assert a.prompt_token_ids == b.prompt_token_ids and len(a.heads) == len(a.token_ids)
    assert 0 < sum(a.stats.num_accepted for a in on) < sum(a.stats.num_drafted for a in on)
    assert sum(b.stats.num_drafted for b in off) == 0
    assert [len(entry.top_ids) for entry in on[1].logprobs] == [2] * len(on[1].token_ids)


def test_text_and_token_id_prompts_give_the_same_output(plain: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, seed=0)
    ids = plain.tokenizer("the cat")["input_ids"]
    expected = plain.generate("the cat", params)
    assert [plain.generate(p, params) for p in (ids, [ids], ["the cat"])] == [expected] * 3
    assert plain.generate(["the cat", ids], params) == expected * 2
    assert plain.generate([], params) == []


def test_a_drawn_seed_is_reported_and_repeats(plain: LLM) -> None:
    first = plain.generate("the", SamplingParams(max_tokens=12))[0]
    again = plain.generate("the", SamplingParams(max_tokens=12, seed=first.seed))[0]
    other = plain.generate("the", SamplingParams(max_tokens=12))[0]
    assert again.token_ids == first.token_ids and other.seed != first.seed


def test_priorities_decide_who_ends_first(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with LLM(str(folder), dtype="float32", speculation="off", kv_cache_tokens=1024, max_running=1) as one:
        ended = dict(one.as_finished(["a", "b", "c"], params, priority=[2, 1, 0]))
        assert list(ended) == [2, 1, 0]
        outputs = one.generate(["a", "b", "c"], params)
        assert [ended[i].token_ids for i in range(3)] == [output.token_ids for output in outputs]
        with pytest.raises(RequestError, match="priority: 2 given for 3 prompts"):
            one.generate(["a", "b", "c"], params, priority=[0, 1])


def test_cache_salt_separates_prefix_cache_entries(plain: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=2)
    prompt = "a prompt of its own, longer than two blocks of tokens"
    outputs = [plain.generate(prompt, params, cache_salt=salt)[0] for salt in (None, "x", "x", "y", None)]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 48, 0, 48]
    assert len({output.token_ids for output in outputs}) == 1
    with pytest.raises(RequestError, match="cache_salt must not be empty"):
        plain.generate(prompt, params, cache_salt="")


SCHEMA = {"type": "object", "properties": {"c": {"enum": ["x", "y"]}}, "required": ["c"]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
LONG = "longer than one block of the prefix cache"
WAYS = {
    "generate": lambda llm, **fields: llm.generate(LONG, **fields),
    "as_finished": lambda llm, **fields: list(llm.as_finished([[*range(7, 40)]], **fields)),
    "chat": lambda llm, **fields: llm.chat([{"role": "user", "content": LONG}], **fields),
    "stream": lambda llm, **fields: list(llm.stream(LONG, **fields)),
}


@pytest.mark.parametrize("way", WAYS)
def test_priority_orders_the_requests_of_every_llm_method(folder: Path, way: str) -> None:
    """One seat, and a request of priority 3 that waits for it: who goes first?"""
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with LLM(str(folder), dtype="float32", speculation="off", kv_cache_tokens=1024, max_running=1) as one:
        for priority, goes_first in ((2, True), (4, False)):
            one.engine.submit(Request(request_id="other", prompt_ids=(5, 6), params=params, seed=0, priority=3))
            WAYS[way](one, params=params, priority=priority)
            assert one.engine.has_work is goes_first, "the other one has not begun"
            while one.engine.has_work:
                one.engine.step()


@pytest.mark.parametrize("way", WAYS)
def test_cache_salt_applies_to_every_llm_method(plain: LLM, way: str) -> None:
    """A second one finds the prefix that the first one left, if their salts are the same."""
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    asked: list[Request] = []
    submit, plain.engine.submit = plain.engine.submit, lambda one, *rest: (asked.append(one), submit(one, *rest))
    try:
        WAYS[way](plain, params=params, cache_salt=f"salt of {way}")
    finally:
        plain.engine.submit = submit
    assert [one.cache_salt for one in asked] == [f"salt of {way}"]
    more = [*asked[0].prompt_ids, *range(20)]
    found = [
        plain.generate([more], params, cache_salt=salt)[0].num_cached_tokens
        for salt in (f"other of {way}", f"salt of {way}")
    ]
    assert found == [0, len(asked[0].prompt_ids) // 16 * 16] and found[1] > 0


def test_params_and_priorities_are_one_for_all_or_one_per_prompt(plain: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3, seed=0)
    both = dict(plain.as_finished([[5, 6], [7, 8]], params, priority=[1, 0]))
    assert [both[0], both[1]] == plain.generate([[5, 6], [7, 8]], params)
    with pytest.raises(RequestError, match="params: 1 given for 2 prompts"):
        next(plain.as_finished([[5, 6], [7, 8]], [params]))
    with pytest.raises(RequestError, match="priority: 3 given for 2 prompts"):
        next(plain.as_finished([[5, 6], [7, 8]], params, priority=[1, 2, 3]))


def test_calls_without_params_use_the_models_own(plain: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain.get_default_sampling_params() == SamplingParams()
    own = {"temperature": 0.0, "repetition_penalty": 1.3, "max_tokens": 9}
    monkeypatch.setitem(plain.facts, "default_sampling_params", own)
    params = plain.get_default_sampling_params()
    assert params == SamplingParams(**own)
    expected = plain.generate(PROMPTS, params)
    assert [len(output.token_ids) for output in expected] == [9] * 3
    assert [o.token_ids for o in plain.generate(PROMPTS)] == [o.token_ids for o in expected]
    streamed = tuple(token for delta in plain.stream(PROMPTS[0]) for token in delta.token_ids)
    assert streamed == expected[0].token_ids
    explicit = plain.generate(PROMPTS, SamplingParams(seed=1))
    assert {len(output.token_ids) for output in explicit} == {16}, "params that you make do not read them"
    monkeypatch.setitem(plain.facts, "default_sampling_params", {"temperature": 0.0, "max_tokens": 4000})
    whole = plain.generate(PROMPTS[0])[0]
    assert len(whole.token_ids) + len(whole.prompt_token_ids) == plain.facts["max_model_len"]


def test_explain_gives_the_steps_of_every_output_and_changes_none(llm: LLM, plain: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=3, n=2, ignore_eos=True)
    (expected,) = llm.generate("the cat the", params)
    assert [one.steps for one in expected.outputs] == [None, None]
    (found,) = llm.generate("the cat the", params, explain=True)
    assert found == expected
    for one in found.outputs:
        assert one.steps is not None
        assert [token["id"] for step in one.steps for token in step["tokens"]] == one.token_ids
        assert sum(len(step["accepted"]) for step in one.steps) == one.stats.num_accepted
    assert sum(step["num_drafts"] for step in found.outputs[0].steps or ()) == found.stats.num_drafted > 0
    ((_, finished),) = llm.as_finished("the cat the", params, explain=True)
    assert [one.steps for one in finished.outputs] != [None, None]
    deltas = list(llm.stream("the cat the", replace(params, n=1), explain=True))
    assert sum(len(delta.steps) for delta in deltas) == len(found.outputs[0].steps or ())
    hello = [{"role": "user", "content": "hello"}]
    (answer,) = plain.chat(hello, replace(params, n=1), explain=True)
    assert [step["reason"] for step in answer.outputs[0].steps or ()][1:] == ["off"] * 19
    assert plain.chat(hello, replace(params, n=1))[0].outputs[0].steps is None


def test_explain_is_refused_beside_a_search_and_as_anything_but_a_bool(plain: LLM) -> None:
    with pytest.raises(RequestError, match="explain cannot be used with beam_width"):
        plain.generate("a", SamplingParams(beam_width=2, max_tokens=3, temperature=0.0), explain=True)
    with pytest.raises(RequestError, match="explain must be True or False, got 'yes'"):
        plain.generate("a", explain="yes")  # type: ignore[arg-type]


def test_interleaved_streams_each_get_their_own_tokens(llm: LLM) -> None:
    """What a step brings for one stream, while another one is read, is kept for it."""
    params = [SamplingParams(temperature=0.7, seed=i, max_tokens=25, ignore_eos=True) for i in range(3)]
    whole = [llm.generate(prompt, each)[0] for prompt, each in zip(PROMPTS, params, strict=True)]
    streams = [llm.stream(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    seen: list[list[int]] = [[], [], []]
    for turn in (0, 1, 1, 1):
        seen[turn] += next(streams[turn]).token_ids
    between = llm.generate(PROMPTS[2], params[2])[0]
    for stream, tokens in zip(streams, seen, strict=True):
        tokens.extend(token for delta in stream for token in delta.token_ids)
    assert [tuple(tokens) for tokens in seen] == [each.token_ids for each in whole]
    assert between == whole[2] and not llm.engine.has_work and not llm._kept and not llm._open_ids


def test_streaming_gives_the_text_and_tokens_of_generate(llm: LLM) -> None:
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=25)
    whole = llm.generate("the cat", params)[0]
    deltas = list(llm.stream("the cat", params))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert tuple(i for delta in deltas for i in delta.token_ids) == whole.token_ids
    assert [delta.finish_reason for delta in deltas][-1] is whole.finish_reason


def test_leaving_a_stream_aborts_its_request(llm: LLM) -> None:
    for delta in llm.stream("the cat", SamplingParams(max_tokens=100)):
        assert delta.finish_reason is None
        break
    assert not llm._backend.engine.has_work
    assert len(llm.generate("the", SamplingParams(max_tokens=3))[0].token_ids) <= 3


@pytest.mark.parametrize("speculating", [True, False])
def test_a_stop_string_ends_the_text_and_the_request(llm: LLM, plain: LLM, speculating: bool) -> None:
    model = llm if speculating else plain
    free = plain.generate("the cat", SamplingParams(temperature=0.0, max_tokens=40))[0]
    places = [i for i in range(6, len(free.text) - 3) if "\ufffd" not in free.text[i : i + 2]]
    stop = free.text[places[0] : places[0] + 2]
    got = model.generate("the cat", SamplingParams(temperature=0.0, max_tokens=40, stop=(stop,)))[0]
    assert got.text == free.text[: free.text.index(stop)] and got.finish_reason is FinishReason.STOP
    assert got.token_ids == free.token_ids[: len(got.token_ids)] and len(got.token_ids) < 40
    assert len(got.heads) == len(got.token_ids)
    assert not model._backend.engine.has_work


def test_a_special_token_stops_within_a_verified_tree_as_it_does_without_drafts(llm: LLM, plain: LLM) -> None:
    """The token comes now and then, by a bias; what is accepted with it and after it in a step does not count."""
    free = SamplingParams(temperature=0.9, seed=3, max_tokens=60, logit_bias=((258, 3.0),))
    ids = plain.generate("the cat", free)[0].token_ids
    places = [i for i, token in enumerate(ids) if token == 258]
    assert len(places) > 3
    for place in places:
        stop = "<reserved>"
        on, off = (
            model.generate("the cat", replace(free, stop=(stop,), min_tokens=place))[0] for model in (llm, plain)
        )
        assert (on.token_ids, on.text, on.finish_reason) == (off.token_ids, off.text, FinishReason.STOP)
        assert on.token_ids == ids[: place + 1] and on.text == plain.tokenizer.decode(ids[:place], True)
    always = SamplingParams(temperature=0.0, max_tokens=20, logit_bias=((258, 100.0),), stop=("<reserved>",))
    for model in (llm, plain):
        got = model.generate("the cat", always)[0]
        assert (got.token_ids, got.text, got.finish_reason) == ((258,), "", FinishReason.STOP)


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ("", SamplingParams(), "prompt"),
        ([5, 9999], SamplingParams(), "prompt"),
        ("the", SamplingParams(max_tokens=500), "max_tokens"),
        ("the", SamplingParams(stop_token_ids=(9999,), min_tokens=1), "stop_token_ids"),
    ],
)
def test_invalid_request_is_refused_before_anything_is_decoded(
    plain: LLM, prompt: object, params: SamplingParams, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        plain.generate(["the", prompt], params)
    assert caught.value.param == param
    assert not plain._backend.engine.has_work, "nothing is decoded then"


def test_prompt_refused_by_the_engine_is_named_by_its_index(plain: LLM) -> None:
    """Forms are tested in tests/unit/offline/test_prompts.py; these are what the tokenizer or the engine finds."""
    long = [5] * 128
    for prompts, message in (
        (["the", None], r"prompts\[1\]: must be a text"),
        (["the", [5, 9999]], r"prompts\[1\]: token id 9999 is outside the vocabulary"),
        ([[5, -1]], r"prompts\[0\]: token id -1 is outside the vocabulary"),
        (["the", "the", {"prompt_token_ids": long}], r"prompts\[2\]: This model's maximum context length is 128"),
    ):
        for way in (plain.generate, lambda prompts: list(plain.as_finished(prompts))):
            with pytest.raises(RequestError, match=message):
                way(prompts)
            assert not plain.engine.has_work and not plain._open_ids, "nothing is decoded"


def test_n_outputs_equal_those_of_their_seeds_with_drafts_and_without(llm: LLM, plain: LLM) -> None:
    params = SamplingParams(n=3, seed=4, max_tokens=20, logprobs=1)
    on, off = llm.generate(PROMPTS, params), plain.generate(PROMPTS, params)
    for a, b in zip(on, off, strict=True):
        assert [(o.index, o.token_ids, o.text, o.logprobs) for o in a.outputs] == [
            (o.index, o.token_ids, o.text, o.logprobs) for o in b.outputs
        ]
        assert [o.seed for o in a.outputs] == [choice_seed(4, i) for i in range(3)]
    for i, output in enumerate(on[1].outputs):
        alone = plain.generate(PROMPTS[1], SamplingParams(seed=output.seed, max_tokens=20, logprobs=1))[0]
        assert alone.outputs[0].token_ids == output.token_ids and output.index == i
        assert output.cumulative_logprob == sum(entry.logprob for entry in alone.logprobs)


def test_dict_prompts_equal_their_text_and_token_ids(plain: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, seed=0)
    ids = plain.get_tokenizer()("the cat")["input_ids"]
    prompts = ["the cat", {"prompt": "the cat"}, {"prompt_token_ids": ids}, ids]
    outputs = plain.generate(prompts, params)
    assert [output.prompt for output in outputs] == ["the cat", "the cat", None, None]
    assert [output.prompt_token_ids for output in outputs] == [ids] * 4
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert plain.generate({"prompt": "the cat"}, sampling_params=params) == outputs[:1]


def test_llm_seed_makes_a_program_repeat(folder: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        with LLM(str(folder), speculation="off", kv_cache_tokens=1024, seed=seed) as made:
            texts.append([output.token_ids for output in made.generate(PROMPTS) + made.generate(PROMPTS)])
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 6
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        LLM(str(folder), seed="x")


def test_former_argument_names_work_but_not_beside_new_ones(plain: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3, seed=1)
    assert plain.generate("the", params=params, progress=True) == plain.generate("the", params)
    assert "1/1" in capsys.readouterr().out
    for way in (plain.generate, lambda *given, **more: list(plain.stream(*given, **more))):
        with pytest.raises(RequestError, match="params is the former name of sampling_params, and both are given"):
            way("the", params, params=params)


def test_call_arguments_without_counterpart_are_refused_by_name(plain: LLM) -> None:
    hi = [{"role": "user", "content": "hi"}]
    for call, message in (
        (lambda: plain.generate("the", lora_request=object()), "lora_request: adapters are not loaded"),
        (lambda: plain.chat(hi, lora_request=object()), "lora_request: adapters are not loaded"),
        (lambda: plain.chat(hi, tools=TOOLS), "tools: this model's chat template has no tool format that is known"),
        (lambda: plain.chat(hi, chat_template_content_format="openai"), "chat_template_content_format: 'openai'"),
        (lambda: plain.chat(hi, continue_final_message=True), "set add_generation_prompt to false"),
        (lambda: plain.chat(hi, chat_template_kwargs={"tokenize": 1}), "chat_template_kwargs: tokenize is no variable"),
        (lambda: plain.chat([{"role": "user"}]), r"messages\[0\]: a message with role 'user' needs content"),
        (lambda: list(plain.stream("the", SamplingParams(n=2))), "a stream is one output of one prompt"),
        (lambda: list(plain.stream(["the", "the"])), "a stream is one output of one prompt"),
    ):
        with pytest.raises(RequestError, match=message):
            call()


def test_params_list_of_another_length_is_refused(plain: LLM) -> None:
    with pytest.raises(RequestError, match="params: 2 given for 3 prompts"):
        plain.generate(PROMPTS, [SamplingParams()] * 2)


def test_chat_encodes_messages_with_the_chat_template(plain: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = plain.chat(messages, SamplingParams(temperature=0.0, max_tokens=4))
    assert list(answer.prompt_token_ids) == plain.chat_ids(messages)
    assert plain.tokenizer.decode(answer.prompt_token_ids).endswith("<s>assistant\n")


def test_chat_honours_many_conversations_and_template_arguments(plain: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, seed=0)
    hi, ho = ([{"role": "user", "content": text}] for text in ("hi", "ho"))
    outputs = plain.chat([hi, ho], params, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [plain.chat_ids(hi), plain.chat_ids(ho)]
    assert [output.outputs for output in outputs] == [plain.chat(each, params)[0].outputs for each in (hi, ho)]

    def prompt(messages: list[dict[str, str]], **how: object) -> str:
        return plain.tokenizer.decode(plain.chat(messages, params, **how)[0].prompt_token_ids)

    own = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ tail }}"
    assert prompt(hi, chat_template=own, chat_template_kwargs={"tail": "!"}) == "[hi]!"
    assert "assistant" not in prompt(hi, add_generation_prompt=False)
    open_end = [*hi, {"role": "assistant", "content": "well"}]
    assert prompt(open_end, add_generation_prompt=False, continue_final_message=True).endswith("assistant\nwell")


def test_chat_with_tools_answers_with_calls_that_go_back_into_the_conversation(tmp_path: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=120)
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    folder = save_llm(tmp_path / "llm", max_model_len=1024)
    with LLM(str(folder), speculation="off", kv_cache_tokens=1024, tool_format="hermes") as one:
        output = one.chat(messages, params, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)[0].outputs[
            0
        ]
        (call,) = output.tool_calls
        assert call["function"]["name"] == "f" and json.loads(call["function"]["arguments"])["c"] in ("x", "y")
        assert output.text.startswith('<tool_call>\n{"name": "f", "arguments": {')
        messages += [output.message, {"role": "tool", "tool_call_id": call["id"], "content": "done"}]
        text = one.tokenizer.decode(one.chat_ids(messages))
        arguments = json.dumps(json.loads(call["function"]["arguments"]))
        assert f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call><eos>' in text
        assert "<tool_response>\ndone\n</tool_response>" in text


def test_the_key_chat_template_chooses_the_template(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_module, "start_backend", lambda config: SimpleNamespace(facts={}))
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    one = LLM(str(folder), chat_template=str(tmp_path / "own.jinja"))
    assert one.tokenizer.decode(one.chat_ids([{"role": "user", "content": "hi"}])) == "hi!"
    with pytest.raises(ConfigError, match="chat_template: 'rag' is neither a file nor the name"):
        LLM(str(folder), chat_template="rag")


def test_llm_refuses_unknown_keys_service_keys_and_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wings: unknown key"):
        LLM(str(folder), wings=2)
    for key, value in (
        ("max_queued", 4),
        ("page", True),
        ("http", {}),
        ("autoscaling", {}),
        ("resources", {"front_cpus": 1}),
    ):
        with pytest.raises(ConfigError, match=rf"{key}.*applies only to a service"):
            LLM(str(folder), **{key: value})
    with pytest.raises(ModelError):
        LLM(str(tmp_path))
    with pytest.raises(HeadsError, match=r"has no .safetensors file: heads are a folder"):
        LLM(str(folder), heads=str(tmp_path))


def test_heads_and_speculation_may_be_given_as_config_keys(folder: Path) -> None:
    heads = {"source": str(folder / "heads"), "allow_untrained": True}
    with LLM(str(folder), heads=heads, speculation={"mode": "auto", "max_nodes": 2}, kv_cache_tokens=1024) as made:
        assert made.config.heads.allow_untrained and made.config.heads.source == heads["source"]
        assert made.config.speculation.max_nodes == 2 and made.facts["heads_check"] is None
    with pytest.raises(ConfigError, match=r"heads\.placements: unknown key"):
        LLM(str(folder), heads={"placements": "rank0"})


def test_beam_search_equals_transformers_and_is_unchanged_by_drafts(llm: LLM, plain: LLM, folder: Path) -> None:
    """W hypotheses, best first; text and ids are the best one's; drafts change nothing; samples beside it neither."""
    model = LlamaForCausalLM.from_pretrained(folder)
    beams = SamplingParams(beam_width=3, max_tokens=12, length_penalty=0.0)
    sampled = SamplingParams(max_tokens=10, seed=5)
    on = llm.generate(PROMPTS[:2], [beams, sampled])
    off = plain.generate(PROMPTS[:2], [beams, sampled])
    assert [r.hypotheses for r in on] == [r.hypotheses for r in off] and on[1].token_ids == off[1].token_ids
    found = on[0]
    assert len(found.hypotheses) == 3 and not on[1].hypotheses
    assert [h.score for h in found.hypotheses] == sorted((h.score for h in found.hypotheses), reverse=True)
    assert (found.token_ids, found.finish_reason) == (found.hypotheses[0].token_ids, found.hypotheses[0].finish_reason)
    prompt = torch.tensor([found.prompt_token_ids])
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=-7,
    )
    theirs = [tuple(t for t in row if t != -7) for row in made[:, prompt.shape[1] :].tolist()]
    assert [h.token_ids for h in found.hypotheses] == theirs
