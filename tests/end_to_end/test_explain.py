"""`explain` from the engine to the client: records say what happened, are bounded, and change nothing."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from medusa_dist import LLM, SamplingParams
from medusa_dist.api.routes import build_api
from medusa_dist.api.schema.responses import ChatReply, CompletionReply
from medusa_dist.engine.state import single_sequence, step_notes
from medusa_dist.outputs import Output, TreeReason
from medusa_dist.request import Request
from tests.support.engine_service import EngineService
from tests.support.tiny_llm import save_llm

pytestmark = pytest.mark.usefixtures("one_thread")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAMPLED = {"temperature": 0.8, "seed": 5, "max_tokens": 40, "ignore_eos": True}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> EngineService:
    """Dynamic trees of up to 6 drafts, whatever they cost."""
    folder = save_llm(tmp_path_factory.mktemp("bytes"))
    speculation = {"mode": "auto", "max_nodes": 6, "min_accepted": 0.0}
    keys = {"kv_cache_tokens": 2048, "max_batched_tokens": 64, "max_running": 4}
    llm = LLM(str(folder), heads=str(folder / "heads"), speculation=speculation, **keys)
    llm.engine.policy.cost_model.measured = None
    return EngineService(llm)


def decode(service: EngineService, explain: bool, prompt: str = "the cat the cat", **params: Any) -> list[Output]:
    """All outputs of a request."""
    made = SamplingParams(**SAMPLED | params)
    ids = tuple(service.tokenizer(prompt)["input_ids"])
    service.engine.submit(Request(request_id="x", prompt_ids=ids, params=made, seed=made.seed, explain=explain))
    outputs = []
    while service.engine.has_work:
        outputs += service.engine.step()
    return outputs


def whole(outputs: list[Output]) -> Output:
    merged, *rest = outputs
    for output in rest:
        merged = merged.merged(output)
    return merged


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_records_change_no_token_and_say_where_each_came_from(service: EngineService, temperature: float) -> None:
    plain = whole(decode(service, False, temperature=temperature))
    outputs = decode(service, True, temperature=temperature)
    found = whole(outputs)
    assert found.token_ids == plain.token_ids and plain.steps == ()
    without = whole(decode(service, True, temperature=temperature, speculation=False))
    assert without.token_ids == plain.token_ids
    assert all(len(output.steps) == 1 for output in outputs)
    assert sum(step.num_tokens for step in found.steps) == len(found.token_ids) == 40
    assert sum(step.num_drafts for step in found.steps) == found.stats.num_drafted > 0
    assert sum(len(step.accepted) for step in found.steps) == found.stats.num_accepted > 0
    for output in outputs:
        (step,) = output.steps
        assert tuple(step.tokens[node] for node in step.accepted) == output.token_ids[: len(step.accepted)]
        assert [step.parents[node] for node in step.accepted] == [-1, *step.accepted][: len(step.accepted)]
        assert len(step.chances) == len(step.drafters) == len(step.tokens) == step.num_drafts
        assert all(0.0 < chance <= 1.0 + 1e-6 for chance in step.chances)
        assert all(set(names) <= {"heads", "lookup"} and names for names in step.drafters)
    named = {name for step in found.steps for names in step.drafters for name in names}
    assert "heads" in named and (temperature or "lookup" in named), "greedy, this model repeats itself"


def test_reasons_of_a_request_that_runs_alone(service: EngineService) -> None:
    steps = whole(decode(service, True)).steps
    assert steps[0].reason is TreeReason.PROMPT and steps[0].num_drafts == 0
    assert steps[1].reason is TreeReason.MAX_NODES and steps[1].num_drafts == 6
    steps = whole(decode(service, True, speculation=False)).steps
    assert {step.reason for step in steps} == {TreeReason.OFF} and len(steps) == 40
    assert whole(decode(service, True, max_tokens=2)).steps[-1].reason is TreeReason.LAST_TOKEN


def test_a_preempted_sequence_says_that_its_prompt_was_computed_again(service: EngineService) -> None:
    ids = tuple(service.tokenizer("the cat")["input_ids"])
    params = SamplingParams(**SAMPLED)
    service.engine.submit(Request(request_id="x", prompt_ids=ids, params=params, seed=5, explain=True))
    outputs = service.engine.step() + service.engine.step()
    (group,) = service.engine.scheduler._admitted
    service.engine.scheduler._release(group)
    service.engine.scheduler.waiting.add(group)
    outputs += service.engine.step() + service.engine.step()
    service.engine.abort("x")
    prompt, drafted = TreeReason.PROMPT, TreeReason.MAX_NODES
    assert [step.reason for output in outputs for step in output.steps] == [prompt, drafted, prompt, drafted]


def test_without_explain_nothing_is_noted_or_recorded(service: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever records are made of is out of order, and nobody minds."""
    monkeypatch.setattr(single_sequence, "StepNotes", None)
    monkeypatch.setattr(single_sequence, "_records", None)
    for name in ("begin", "offer", "plan", "record", "reason", "restart"):
        monkeypatch.delattr(step_notes.StepNotes, name)
    assert len(whole(decode(service, False)).token_ids) == 40


def test_records_end_with_the_first_tokens_of_a_long_output(
    service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_sequence, "MAX_TOKENS", 10)
    outputs = decode(service, True)
    known = 0
    for output in outputs:
        assert bool(output.steps) is (known < 10)
        known += len(output.token_ids)
    assert known == 40


def events_of(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


def post(service: EngineService, route: str, **body: Any) -> httpx.Response:
    words = {"messages": [{"role": "user", "content": "the cat"}]} if route == CHAT else {"prompt": "the cat"}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(build_api(lambda: service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(route, json={"model": "tiny", **words, **SAMPLED, **body})

    return asyncio.run(send())


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_steps_over_http_are_the_same_streamed_or_not(service: EngineService, route: str) -> None:
    reply = post(service, route, explain=True).json()
    (ChatReply if route == CHAT else CompletionReply).model_validate(reply)
    (choice,) = reply["choices"]
    text = choice["message"]["content"] if route == CHAT else choice["text"]
    steps = choice["steps"]
    assert "".join(token["text"] for step in steps for token in step["tokens"]) == text
    assert sum(len(step["tokens"]) for step in steps) == reply["usage"]["completion_tokens"]
    counted = reply["metrics"]["speculative_decoding"]
    assert len(steps) == counted["num_spec_steps"]
    assert sum(len(step["accepted"]) for step in steps) == counted["num_accepted_draft_tokens"] > 0
    for step in steps:
        accepted = [step["drafts"][node]["id"] for node in step["accepted"]]
        assert accepted == [token["id"] for token in step["tokens"]][: len(accepted)]
    chunks = list(events_of(post(service, route, explain=True, stream=True).text))
    streamed = [step for chunk in chunks for part in chunk["choices"] for step in part.get("steps", [])]
    assert [without_clock(step) for step in streamed] == [without_clock(step) for step in steps]


def without_clock(step: dict[str, Any]) -> dict[str, Any]:
    """Calibration goes on from one request to the next, so trees differ; what was chosen does not."""
    return {"tokens": step["tokens"]} if step["reason"] == "prompt" else {}


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_bodies_without_explain_are_as_before(service: EngineService, route: str) -> None:
    for off in ({}, {"explain": False}, {"explain": None}):
        reply = post(service, route, **off).json()
        assert "steps" not in reply["choices"][0]
        chunks = list(events_of(post(service, route, stream=True, **off).text))
        assert not any("steps" in part for chunk in chunks for part in chunk["choices"])


def test_a_stop_string_ends_the_steps_with_the_text(service: EngineService) -> None:
    """The last step may have chosen more tokens; those after the stop string are not told."""
    text = post(service, COMPLETIONS).json()["choices"][0]["text"]
    stop = next(c for c in text[10:] if c.isalpha() and c.isascii())
    reply = post(service, COMPLETIONS, explain=True, stop=stop).json()
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "stop" and stop not in choice["text"]
    told = [token for step in choice["steps"] for token in step["tokens"]]
    assert len(told) == reply["usage"]["completion_tokens"] < 40
    assert "".join(token["text"] for token in told).startswith(choice["text"])


def test_several_choices_have_their_own_steps(service: EngineService) -> None:
    choices = post(service, COMPLETIONS, explain=True, n=2).json()["choices"]
    for choice in choices:
        assert "".join(token["text"] for step in choice["steps"] for token in step["tokens"]) == choice["text"]


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_beams_refuse_explain_by_name(service: EngineService, route: str) -> None:
    body = {"beam_width": 2, "explain": True, "temperature": 0.0, "ignore_eos": False, "seed": None}
    reply = post(service, route, **body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "explain"
    assert post(service, route, **body | {"explain": False}).status_code == 200
