import typing

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from medusa_dist.api.schema.fields import CHAT_FIELDS, COMPLETION_FIELDS, Use
from medusa_dist.api.schema.requests import ChatRequest, CompletionRequest
from medusa_dist.grammar import Grammar
from medusa_dist.sampling_params import SamplingParams
from tests.support.fake_service import FakeService, chat, client_of, completion, ids_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

# A value per honoured field that differs from the default, and how it must show: in SamplingParams, or in the answer.
SHOWS_IN_PARAMS = {
    "max_tokens": (7, {"max_tokens": 7}),
    "stop": (["x", "yy"], {"stop": ("x", "yy")}),
    "temperature": (0.5, {"temperature": 0.5}),
    "top_p": (0.5, {"top_p": 0.5}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "presence_penalty": (-0.5, {"presence_penalty": -0.5}),
    "logit_bias": ({"65": 1.5, "3": -100}, {"logit_bias": ((3, -100.0), (65, 1.5))}),
    "seed": (77, {"seed": 77}),
    "top_k": (5, {"top_k": 5}),
    "min_p": (0.1, {"min_p": 0.1}),
    "repetition_penalty": (1.2, {"repetition_penalty": 1.2}),
    "stop_token_ids": ([65], {"stop_token_ids": (65,)}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_tokens": (2, {"min_tokens": 2}),
    "speculation": ("off", {"speculation": False}),
    "prompt_logprobs": (4, {"prompt_logprobs": 4}),
    "acceptance": ("typical", {"acceptance": "typical"}),
    "typical_epsilon": (0.5, {"typical_epsilon": 0.5}),
    "typical_delta": (0.6, {"typical_delta": 0.6}),
    "beam_width": (3, {"beam_width": 3}),
    "use_beam_search": (True, {"beam_width": 1}),
    "length_penalty": (0.5, {"length_penalty": 0.5}),
    "early_stopping": ("never", {"early_stopping": "never"}),
    "structured_outputs": ({"regex": "[ab]+"}, {"grammar": Grammar.regex("[ab]+")}),
    "response_format": ({"type": "json_object"}, {"grammar": Grammar.json()}),
    "guided_json": ({"type": "object"}, {"grammar": Grammar.json_schema({"type": "object"})}),
    "guided_regex": ("[ab]+", {"grammar": Grammar.regex("[ab]+")}),
    "guided_choice": (["a", "b"], {"grammar": Grammar.choice(["a", "b"])}),
    "guided_grammar": ('root ::= "a"', {"grammar": Grammar.ebnf('root ::= "a"')}),
    "allowed_token_ids": ([66, 65, 66], {"allowed_token_ids": (65, 66)}),
    "bad_words": (["the"], {"bad_words": (ids_of("the"), ids_of(" the"))}),
    "include_stop_str_in_output": (True, {"include_stop_str_in_output": True}),
    "skip_special_tokens": (False, {"skip_special_tokens": False}),
    "spaces_between_special_tokens": (False, {"spaces_between_special_tokens": False}),
}
CHAT_SHOWS = SHOWS_IN_PARAMS | {
    "max_completion_tokens": (7, {"max_tokens": 7}),
    "logprobs": (True, {"logprobs": 0}),
}
# Honoured fields that show in the Request itself.
SHOWS_IN_REQUEST = {"priority": (-3, -3), "cache_salt": ("tenant", "tenant"), "explain": (True, True)}
COMPLETION_SHOWS = SHOWS_IN_PARAMS | {"logprobs": (3, {"logprobs": 3})}
# Honoured fields that show elsewhere; each has its own test in test_routes.py or test_requests.py.
ELSEWHERE = {"model", "n", "stream", "stream_options", "messages", "top_logprobs", "add_generation_prompt"}
ELSEWHERE |= {"prompt", "echo", "add_special_tokens", "parse_special"}
ELSEWHERE |= {"return_token_ids", "return_tokens_as_token_ids", "truncate_prompt_tokens"}
ELSEWHERE |= {"tools", "tool_choice", "parallel_tool_calls"}  # in chat/test_chat_answer.py
ELSEWHERE |= {"reasoning_effort", "thinking", "include_reasoning"}  # in chat/test_answering.py
ELSEWHERE |= {"truncation_side", "continue_final_message", "chat_template_kwargs", "documents"}

ASKS = {  # a value that asks for something, per refused field
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "verbosity": "low",
    "web_search_options": {},
    "moderation": {"model": "m"},
    "guided_decoding_backend": "xgrammar",
    "guided_whitespace_pattern": " ",
    "logits_processors": ["x.y"],
    "kv_transfer_params": {"do_remote_decode": True},
    "ec_transfer_params": {"x": 1},
    "vllm_xargs": {"x": 1},
    "logprob_token_ids": [1],
    "thinking_token_budget": 9,
    "repetition_detection": {"max_pattern_size": 3},
    "stream_interval": 4,
    "watermarking": True,
    "routed_experts_prompt_start": 3,
    "return_token_offsets": True,
    "return_mm_kwargs": "x",
    "chat_template": "{{ messages }}",
    "echo": True,
    "return_prompt_text": True,
    "mm_processor_kwargs": {"x": 1},
    "media_io_kwargs": {"image": {}},
    "prompt_embeds": "AAAA",
    "best_of": 2,
    "suffix": "end",
}
LABELS = {"metadata": {"a": "b"}, "store": True, "service_tier": "flex"}


def cases(use):
    for route, rules, make in ((CHAT, CHAT_FIELDS, chat), (COMPLETIONS, COMPLETION_FIELDS, completion)):
        for name, rule in rules.items():
            if rule.use is use:
                yield pytest.param(route, make, name, rule, id=f"{route.split('/')[2]}-{name}")


async def send(route, body):
    service = FakeService("ok")
    async with client_of(service) as client:
        return await client.post(route, json=body), service


@pytest.mark.parametrize(
    ("params", "rules", "model"),
    [
        (chat_create_params.CompletionCreateParamsBase, CHAT_FIELDS, ChatRequest),
        (completion_create_params.CompletionCreateParamsBase, COMPLETION_FIELDS, CompletionRequest),
    ],
    ids=["chat", "completions"],
)
def test_field_tables_cover_the_openai_client_and_match_the_schema(params, rules, model):
    asked = set(typing.get_type_hints(params, include_extras=False)) | {"stream"}
    assert asked <= set(rules)
    assert set(model.model_fields) == set(rules)


# Request fields of vLLM (entrypoints/openai/protocol.py of 2025); what is OpenAI's alone, or ours, is not in it.
VLLM = {
    *("model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty"),
    *("response_format", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user"),
    *("use_beam_search", "top_k", "min_p", "repetition_penalty", "length_penalty", "stop_token_ids"),
    *("include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens"),
    *("spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs", "allowed_token_ids"),
    *("bad_words", "echo", "structured_outputs", "guided_json", "guided_regex", "guided_choice"),
    *("guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern", "priority", "request_id"),
    *("logits_processors", "return_tokens_as_token_ids", "return_token_ids", "cache_salt"),
    *("kv_transfer_params", "vllm_xargs"),
}
VLLM_CHAT = {
    *("messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "reasoning_effort"),
    *("include_reasoning", "parallel_tool_calls", "add_generation_prompt", "continue_final_message"),
    *("documents", "chat_template", "chat_template_kwargs", "mm_processor_kwargs"),
}


def test_the_table_covers_vllms_fields():
    assert {*VLLM, *VLLM_CHAT} <= set(CHAT_FIELDS)
    assert {*VLLM, "prompt", "suffix", "best_of", "prompt_embeds"} <= set(COMPLETION_FIELDS)


def test_every_sampling_param_is_a_field_of_both_routes():
    fields = set(SamplingParams.__dataclass_fields__) - {"grammar", "detokenize"} | {"structured_outputs"}
    assert fields <= set(CHAT_FIELDS) and fields <= set(COMPLETION_FIELDS)


@pytest.mark.parametrize(("route", "make", "name", "rule"), [*cases(Use.REFUSED)])
async def test_refused_field_is_400_by_name_and_its_neutral_values_are_accepted(route, make, name, rule):
    reply, service = await send(route, make(**{name: ASKS[name]}))
    assert reply.status_code == 400 and not service.requests
    error = reply.json()["error"]
    assert error["param"] == name and name in error["message"] and error["code"] == "unsupported_parameter"
    for neutral in (None, *rule.neutral):
        reply, _ = await send(route, make(**{name: neutral}))
        assert reply.status_code == 200, (name, neutral, reply.text)


@pytest.mark.parametrize(("route", "make", "name", "rule"), [*cases(Use.ACCEPTED)])
async def test_accepted_field_without_effect_changes_neither_params_nor_reply(route, make, name, rule):
    plain, asked = await send(route, make(seed=1)), await send(route, make(seed=1, **{name: LABELS.get(name, "x")}))
    assert asked[0].status_code == 200
    assert asked[1].requests[0].params == plain[1].requests[0].params
    assert asked[0].json()["choices"] == plain[0].json()["choices"]


@pytest.mark.parametrize(("route", "make", "name", "rule"), [*cases(Use.HONOURED)])
async def test_honoured_field_reaches_the_engine(route, make, name, rule):
    shows = CHAT_SHOWS if route == CHAT else COMPLETION_SHOWS
    if name in ELSEWHERE:
        assert name not in shows
        return
    if name in SHOWS_IN_REQUEST:
        value, wanted = SHOWS_IN_REQUEST[name]
        reply, service = await send(route, make(**{name: value}))
        assert reply.status_code == 200 and getattr(service.requests[0], name) == wanted
        return
    value, expected = shows[name]
    company = {"acceptance": "typical"} if name.startswith("typical") else {}
    company |= {"beam_width": 2} if name in ("length_penalty", "early_stopping") else {}
    reply, service = await send(route, make(**{name: value}, **company))
    assert reply.status_code == 200, reply.text
    params = service.requests[0].params
    default = SamplingParams()
    for field, wanted in expected.items():
        assert getattr(params, field) == wanted != getattr(default, field)


async def test_null_field_means_its_default():
    for route, make, rules in ((CHAT, chat, CHAT_FIELDS), (COMPLETIONS, completion, COMPLETION_FIELDS)):
        nulls = {name: None for name in rules if name not in ("model", "messages", "prompt")}
        reply, service = await send(route, make(**nulls))
        assert reply.status_code == 200, reply.text
        expected = SamplingParams(max_tokens=None if route == CHAT else 16)
        assert service.requests[0].params == expected
