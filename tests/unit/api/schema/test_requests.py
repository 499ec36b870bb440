"""Fields of vLLM's API that show in the prompt or the response: what each does, streamed and not."""

import json

import pytest

from medusa_dist.api.schema.responses import ChatReply, CompletionReply
from tests.support.fake_service import TOKENIZER, FakeService, chat, client_of, completion, ids_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXT = "Hello thé 😀!"
USER = {"role": "user", "content": "Hi"}


async def ask(route, body, service=None):
    service = service or FakeService()
    async with client_of(service) as client:
        reply = await client.post(route, json=body)
    assert reply.status_code == 200, reply.text
    if body.get("stream"):
        lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n")[:-2]]
        return [json.loads(line) for line in lines], service
    (ChatReply if route == CHAT else CompletionReply).model_validate(reply.json())
    return reply.json(), service


async def refused(route, body):
    service = FakeService()
    async with client_of(service) as client:
        reply = await client.post(route, json=body)
    assert reply.status_code == 400 and not service.requests
    return reply.json()["error"]


@pytest.mark.parametrize("model", [{}, {"model": ""}, {"model": None}, {"model": "org/tiny"}], ids=str)
async def test_the_only_model_need_not_be_named(model):
    for route, make in ((CHAT, chat), (COMPLETIONS, completion)):
        body = {name: value for name, value in make().items() if name != "model"} | model
        assert (await ask(route, body))[0]["model"] == "org/tiny"
    async with client_of(FakeService()) as client:
        assert (await client.post("/tokenize", json={"prompt": "x"} | model)).status_code == 200


async def test_seed_minus_one_is_random_and_reported():
    seeds = [(await ask(CHAT, chat(seed=-1)))[0]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1] and all(0 <= seed < 2**53 for seed in seeds)


async def test_top_p_0_is_taken():
    _, service = await ask(CHAT, chat(top_p=0))
    assert service.requests[0].params.top_p == 0.0


async def test_continuous_usage_counts_up_to_the_whole():
    for route, make in ((CHAT, chat), (COMPLETIONS, completion)):
        for more in ({}, {"include_usage": True}):
            options = {"continuous_usage_stats": True, **more}
            chunks, _ = await ask(route, make(stream=True, n=2, stream_options=options))
            whole, _ = await ask(route, make(n=2))
            counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
            assert counts == sorted(counts) and counts[-1] == whole["usage"]["completion_tokens"]
            assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
            assert all(
                c["usage"]["total_tokens"] - n == whole["usage"]["prompt_tokens"]
                for c, n in zip(chunks, counts, strict=True)
            )
            assert len(set(counts)) > 4
    error = await refused(
        CHAT, chat(stream=True, stream_options={"continuous_usage_stats": True, "include_usage": False})
    )
    assert error["param"] == "stream_options" and "include_usage" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_are_returned(stream):
    tokens = [*ids_of(TEXT), TOKENIZER.eos_token_id]
    got, service = await ask(CHAT, chat(return_token_ids=True, stream=stream))
    prompt = list(service.requests[0].prompt_ids)
    if stream:
        assert got[0]["prompt_token_ids"] == prompt and not any("prompt_token_ids" in chunk for chunk in got[1:])
        assert [t for chunk in got for t in chunk["choices"][0].get("token_ids", [])] == tokens
    else:
        assert (got["prompt_token_ids"], got["choices"][0]["token_ids"]) == (prompt, tokens)
    for echo in (False, True):
        body = completion(prompt=["ab", "c"], n=2, return_token_ids=True, stream=stream, echo=echo)
        got, _ = await ask(COMPLETIONS, body)
        choices = [choice for chunk in got for choice in chunk["choices"]] if stream else got["choices"]
        for index, prompt in enumerate(["ab", "ab", "c", "c"]):
            mine = [choice for choice in choices if choice["index"] == index]
            own = [*ids_of(TEXT + "." * index), TOKENIZER.eos_token_id]
            assert [t for choice in mine for t in choice.get("token_ids", [])] == own
            assert [choice["prompt_token_ids"] for choice in mine if "prompt_token_ids" in choice] == [
                list(ids_of(prompt))
            ]
            assert "prompt_token_ids" in mine[0]


async def test_tokens_are_named_by_their_ids():
    tokens = [f"token_id:{i}" for i in (*ids_of(TEXT), TOKENIZER.eos_token_id)]
    got, _ = await ask(CHAT, chat(logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True))
    content = got["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == tokens
    assert content[0]["top_logprobs"][0]["token"] == "token_id:65" and content[0]["bytes"] == [72]
    got, _ = await ask(COMPLETIONS, completion(logprobs=1, echo=True, return_tokens_as_token_ids=True))
    logprobs = got["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{i}" for i in ids_of("Hi")] + tokens
    assert set(logprobs["top_logprobs"][2]) == {"token_id:65", tokens[0]}
    assert set(logprobs["top_logprobs"][1]) == {f"token_id:{ids_of('A')[0]}", f"token_id:{ids_of('i')[0]}"}


@pytest.mark.parametrize("as_ids", [False, True])
async def test_a_long_prompt_is_truncated(as_ids):
    text = "abcdef"
    prompt = list(ids_of(text)) if as_ids else text
    for fields, kept in (
        ({"truncate_prompt_tokens": 2}, "ef"),
        ({"truncate_prompt_tokens": 2, "truncation_side": "left"}, "ef"),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, "ab"),
        ({"truncate_prompt_tokens": 6}, text),
        ({"truncate_prompt_tokens": 99, "truncation_side": "right"}, text),
        ({"truncate_prompt_tokens": -1}, text),
    ):
        got, service = await ask(COMPLETIONS, completion(prompt=prompt, echo=True, **fields))
        assert service.requests[0].prompt_ids == ids_of(kept)
        assert got["choices"][0]["text"] == kept + TEXT and got["usage"]["prompt_tokens"] == len(kept)
    long = list(ids_of("x" * 500)) if as_ids else "x" * 500
    for max_tokens, left in ((50, 150), (0, 200), (None, 184)):
        body = completion(prompt=long, truncate_prompt_tokens=-1, max_tokens=max_tokens, echo=True)
        _, service = await ask(COMPLETIONS, body)
        assert len(service.requests[0].prompt_ids) == left


async def test_a_long_conversation_is_truncated():
    body = chat(messages=[{"role": "user", "content": "x" * 500 + "end"}], truncate_prompt_tokens=17)
    got, service = await ask(CHAT, body)
    assert TOKENIZER.decode(service.requests[0].prompt_ids) == "xxend<eos><s>assistant\n"
    assert got["usage"]["prompt_tokens"] == 17
    for limit, left in (({}, 199), ({"max_tokens": 20}, 180), ({"max_completion_tokens": 30}, 170)):
        _, service = await ask(CHAT, body | {"truncate_prompt_tokens": -1, **limit})
        assert len(service.requests[0].prompt_ids) == left


async def test_truncation_that_makes_no_sense_is_refused():
    for fields, param in (
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncation_side": "left"}, "truncation_side"),
        ({"truncate_prompt_tokens": 5, "truncation_side": "middle"}, "truncation_side"),
    ):
        assert (await refused(COMPLETIONS, completion(**fields)))["param"] == param
    assert (await refused(COMPLETIONS, completion(prompt="x" * 500, truncate_prompt_tokens=300)))["param"] == "prompt"


@pytest.mark.parametrize("text", ["Once ", "Once\n\n", ""])
async def test_the_final_message_is_continued(text):
    messages = [USER, {"role": "assistant", "content": text}]
    for more in ({}, {"add_generation_prompt": False}):
        got, service = await ask(CHAT, chat(messages=messages, continue_final_message=True, **more))
        assert TOKENIZER.decode(service.requests[0].prompt_ids) == "<s>user\nHi<eos><s>assistant\n" + text
        assert got["choices"][0]["message"]["content"] == TEXT, "the prefill is not repeated"
    async with client_of(FakeService()) as client:
        body = {"messages": messages, "continue_final_message": True}
        assert (await client.post("/tokenize", json=body)).json()["tokens"] == list(service.requests[0].prompt_ids)
    error = await refused(CHAT, chat(messages=messages, continue_final_message=True, add_generation_prompt=True))
    assert error["param"] == "continue_final_message" and "exclude each other" in error["message"]


def with_template(template):
    service = FakeService()
    service.tokenizer = type(TOKENIZER)(
        tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<eos>", bos_token="<s>"
    )
    service.tokenizer.chat_template = template
    return service


async def test_the_template_gets_its_variables_and_documents():
    service = with_template(
        "{{ mood }}{% for d in documents or [] %}[{{ d.text }}]{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    body = chat(chat_template_kwargs={"mood": "sad:"}, documents=[{"title": "t", "text": "one"}, {"text": "two"}])
    await ask(CHAT, body, service)
    assert TOKENIZER.decode(service.requests[0].prompt_ids) == "sad:[one][two]Hi"
    async with client_of(service) as client:
        reply = await client.post("/tokenize", json={"messages": [USER], "chat_template_kwargs": {"mood": "x"}})
    assert TOKENIZER.decode(reply.json()["tokens"]) == "xHi"
    for fields, param in (
        ({"chat_template_kwargs": {"mode": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"documents": ["x"]}, "documents"),
    ):
        assert (await refused(CHAT, chat(**fields)))["param"] == param
    await ask(CHAT, chat(chat_template_kwargs={"enable_thinking": False}, documents=[]))  # asks for nothing
