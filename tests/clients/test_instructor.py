"""instructor, in every mode that it has for a server that speaks OpenAI's API."""

from collections.abc import Iterable
from typing import Literal

import pytest

from tests.clients.conftest import hermes_call

instructor = pytest.importorskip("instructor")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")
pytestmark = pytest.mark.clients


class Weather(pydantic.BaseModel):
    """The weather."""

    model_config = pydantic.ConfigDict(extra="forbid")
    unit: Literal["C", "F"]
    sunny: bool


SAID = Weather(unit="C", sunny=True)
ENFORCED = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS")  # by a grammar: even a random model fits
TEXT = ("JSON", "MD_JSON")  # the prompt asks for it
ASK = {"response_model": Weather, "max_retries": 0, "max_tokens": 200}


def patched(served, mode):
    client = openai.OpenAI(base_url=served.base_url, api_key=served.api_key, max_retries=0)
    return instructor.from_openai(client, mode=instructor.Mode[mode], model=served.model)


def say(text="Hi"):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("mode", ENFORCED)
def test_enforced_modes_give_the_model_from_random_weights(tiny, mode):
    assert isinstance(patched(tiny, mode).chat.completions.create(messages=say(), **ASK), Weather)


@pytest.mark.parametrize("mode", TEXT)
def test_modes_by_prompt_read_the_answer(scripted, mode):
    text = SAID.model_dump_json()
    scripted.script(f"```json\n{text}\n```" if mode == "MD_JSON" else text)
    assert patched(scripted, mode).chat.completions.create(messages=say(), **ASK).model_dump() == SAID.model_dump()


def test_parallel_tools_give_a_list(scripted):
    scripted.script(hermes_call("Weather", unit="C", sunny=True) + "\n" + hermes_call("Weather", unit="F", sunny=False))
    found = patched(scripted, "PARALLEL_TOOLS").chat.completions.create(
        messages=say(), response_model=Iterable[Weather], max_retries=0
    )
    assert [(one.unit, one.sunny) for one in found] == [("C", True), ("F", False)]


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_a_partial_model_is_streamed(tiny, mode):
    parts = list(patched(tiny, mode).chat.completions.create_partial(messages=say(), **ASK))
    assert isinstance(Weather(**parts[-1].model_dump()), Weather)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON"])
def test_an_answer_that_does_not_fit_is_asked_for_again(scripted, mode):
    class Even(pydantic.BaseModel):
        number: int

        @pydantic.field_validator("number")
        @classmethod
        def _even(cls, value):
            if value % 2:
                raise ValueError("must be even")
            return value

    texts = [hermes_call("Even", number=n) if mode == "TOOLS" else f'{{"number": {n}}}' for n in (1, 2)]
    scripted.script(*texts)
    found = patched(scripted, mode).chat.completions.create(messages=say(), response_model=Even, max_retries=1)
    assert found.number == 2 and "must be even" in scripted.seen()[1]


def test_iterable_of_models_is_streamed(scripted):
    both = [{"unit": "C", "sunny": True}, {"unit": "F", "sunny": False}]
    scripted.script(hermes_call("IterableWeather", tasks=both))
    found = patched(scripted, "TOOLS").chat.completions.create_iterable(messages=say(), **ASK)
    assert [one.model_dump() for one in found] == both


async def test_async_client(tiny):
    client = openai.AsyncOpenAI(base_url=tiny.base_url, api_key=tiny.api_key)
    create = instructor.from_openai(client, model="tiny").chat.completions.create
    assert isinstance(await create(messages=say(), **ASK), Weather)


def test_from_provider(tiny, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", tiny.base_url)
    client = instructor.from_provider("openai/tiny", api_key=tiny.api_key)
    assert isinstance(client.chat.completions.create(messages=say(), **ASK), Weather)
