"""A folder without tokenizer files serves token ids, in Python and over HTTP, and refuses what needs text by name."""

import json
from pathlib import Path

import pytest

from medusa_dist import LLM, Grammar, SamplingParams
from medusa_dist.errors import ConfigError, ModelError, RequestError
from tests.support.engine_service import EngineService
from tests.support.fake_service import client_of
from tests.support.tiny_llm import TREE, save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = [7, 8, 9]
FIELDS = {"temperature": 0.0, "max_tokens": 12, "logprobs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_llm(tmp_path_factory.mktemp("ids"))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path):
    keys = {"heads": str(folder / "heads"), "speculation": TREE, "kv_cache_tokens": 1024}
    with LLM(str(folder), skip_tokenizer_init=True, **keys) as made:
        yield made


def test_ids_equal_those_with_a_tokenizer(llm: LLM, tmp_path: Path) -> None:
    with LLM(str(save_llm(tmp_path)), speculation="off", kv_cache_tokens=1024) as other:
        expected = other.generate(PROMPT, SamplingParams(**FIELDS))[0].outputs[0]
    params = SamplingParams(**FIELDS, stop_token_ids=expected.token_ids[8:9])
    (found,) = llm.generate({"prompt_token_ids": PROMPT}, params)
    assert found.prompt is None and found.prompt_token_ids == PROMPT
    output = found.outputs[0]
    end = expected.token_ids.index(expected.token_ids[8]) + 1
    assert (output.text, output.token_ids) == ("", expected.token_ids[:end])
    assert (output.finish_reason, output.stop_reason) == ("stop", expected.token_ids[8])
    assert [list(entry) for entry in output.logprobs] == [list(entry) for entry in expected.logprobs[:end]]
    assert output.logprobs[0][output.token_ids[0]].decoded_token == f"token_id:{output.token_ids[0]}"
    assert found.stats.num_drafted > 0


def test_requests_that_need_text_are_refused_by_name(llm: LLM) -> None:
    for call, message in (
        (lambda: llm.generate("text"), r"prompts\[0\]: .*skip_tokenizer_init"),
        (lambda: llm.generate([PROMPT, {"prompt": "text"}]), r"prompts\[1\]: .*skip_tokenizer_init"),
        (lambda: llm.generate(PROMPT, SamplingParams(stop="x")), "stop: .*use stop_token_ids"),
        (lambda: llm.generate(PROMPT, SamplingParams(grammar=Grammar.json())), "json_object cannot .*skip_tokenizer"),
        (lambda: llm.chat([{"role": "user", "content": "hi"}]), "skip_tokenizer_init"),
    ):
        with pytest.raises(RequestError, match=message):
            call()
        assert not llm.engine.has_work
    with pytest.raises(ConfigError, match="skip_tokenizer_init: no tokenizer was loaded"):
        llm.get_tokenizer()


def test_folder_without_tokenizer_is_refused_with_the_key_to_set(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"the tokenizer is missing .*skip_tokenizer_init"):
        LLM(str(folder), kv_cache_tokens=1024)


async def test_completions_over_http_return_token_ids(llm: LLM) -> None:
    (expected,) = llm.generate(PROMPT, SamplingParams(**FIELDS))
    body = {"model": "tiny", "prompt": PROMPT, **FIELDS}
    async with client_of(EngineService(llm)) as client:
        whole = (await client.post("/v1/completions", json=body)).json()
        streamed = await client.post("/v1/completions", json=body | {"stream": True, "logprobs": None, "echo": True})
    choice = whole["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("", list(expected.token_ids))
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in expected.token_ids]
    parts = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
    choices = [choice for part in parts for choice in json.loads(part)["choices"]]
    assert [i for choice in choices for i in choice.get("token_ids", ())] == list(expected.token_ids)
    assert {choice["text"] for choice in choices} == {""}


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/completions", {"prompt": "text"}, "prompt"),
        ("/v1/completions", {"prompt": [[7], [8]], "stop": ["x"]}, "stop"),
        ("/v1/completions", {"prompt": [7], "structured_outputs": {"json_object": True}}, "structured_outputs"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, "messages"),
        ("/tokenize", {"prompt": "text"}, "prompt"),
    ],
)
async def test_text_over_http_is_a_400_that_names_the_field(llm: LLM, route: str, body: dict, param: str) -> None:
    async with client_of(EngineService(llm)) as client:
        answer = await client.post(route, json={"model": "tiny", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "skip_tokenizer_init" in error["message"] and error["param"] == param
