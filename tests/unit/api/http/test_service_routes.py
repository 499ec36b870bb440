import pytest
from prometheus_client.parser import text_string_to_metric_families

from medusa_dist import __version__
from medusa_dist.api.schema.responses import ModelCard
from medusa_dist.api.service import Health
from medusa_dist.errors import EngineError
from tests.support.anthropic_shapes import ModelPage
from tests.support.fake_service import TOKENIZER, FakeService, client_of, ids_of


async def get(path, service=None, method="GET", **kwargs):
    async with client_of(service or FakeService(), **kwargs) as client:
        return await client.request(method, f"http://test{path}")


async def test_version_route_returns_the_package_version():
    assert (await get("/version")).json() == {"version": __version__}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_ping_follows_health_and_live_stays_200(method):
    service = FakeService()
    for ok, status in ((True, 200), (False, 503)):
        service.state = Health(ok, "rank 1 restarts")
        assert (await get("/ping", service, method)).status_code == status
        assert (await get("/health", service)).status_code == status
        assert (await get("/live", service)).status_code == 200


async def test_load_returns_requests_and_the_replicas_last_report():
    service = FakeService()
    service.num_requests = 7
    assert (await get("/load", service)).json() == {
        "server_load": 7,
        "running_sequences": 2,
        "waiting_sequences": 1,
        "kv_used_fraction": 0.25,
        "output_tokens": 40,
        "sequence_steps": 16,
    }


async def test_metrics_route_returns_text_that_prometheus_parses():
    reply = await get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert [(f.name, f.samples[0].value) for f in text_string_to_metric_families(reply.text)] == [("up", 1.0)]


async def test_metrics_route_is_503_where_no_node_answers():
    service = FakeService()

    async def metrics():
        raise EngineError("no node answers")

    service.metrics = metrics
    reply = await get("/metrics", service)
    assert reply.status_code == 503 and reply.json()["error"]["message"] == "no node answers"


@pytest.mark.parametrize("name", ["org/tiny", "a//b", "plain", "x/y/z"])
async def test_model_is_found_by_id_with_plain_or_encoded_slashes(name):
    service = FakeService()
    service.name = name
    for path in (name, name.replace("/", "%2F"), f"{name}/"):
        reply = await get(f"/v1/models/{path}", service)
        assert reply.status_code == 200 and ModelCard.model_validate(reply.json()).id == name
    assert (await get(f"/v1/models/{name}x", service)).status_code == 404


@pytest.mark.parametrize("text", ["Hello thé 😀!", "", "a" * 5000])
async def test_detokenize_inverts_tokenize(text):
    async with client_of(FakeService()) as client:
        tokens = (await client.post("/tokenize", json={"prompt": text, "add_special_tokens": False})).json()["tokens"]
        assert tuple(tokens) == ids_of(text)
        reply = await client.post("/detokenize", json={"model": "org/tiny", "tokens": tokens})
        assert (reply.status_code, reply.json()) == (200, {"prompt": text})
        special = (await client.post("/detokenize", json={"tokens": [TOKENIZER.eos_token_id]})).json()
        assert special == {"prompt": TOKENIZER.eos_token}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tokens": [0, 10**6]}, "tokens"),
        ({"tokens": [-1]}, "tokens"),
        ({"tokens": "ab"}, "tokens"),
        ({"tokens": [1.5]}, "tokens"),
        ({}, "tokens"),
        ({"tokens": [1], "tokenz": 1}, "tokenz"),
    ],
)
async def test_detokenize_refuses_wrong_fields_by_name(body, param):
    async with client_of(FakeService()) as client:
        reply = await client.post("/detokenize", json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


async def test_detokenize_of_another_model_is_404():
    async with client_of(FakeService()) as client:
        assert (await client.post("/detokenize", json={"tokens": [1], "model": "x"})).status_code == 404


@pytest.mark.parametrize(
    ("path", "is_open"),
    [
        *[("/health", True), ("/ping", True), ("/live", True), ("//live/", True)],
        *[("/version", False), ("/load", False), ("/metrics", False), ("/v1/models", False), ("/openapi.json", False)],
    ],
)
async def test_probe_routes_need_no_key_and_other_routes_do(path, is_open):
    for method in ("GET", "HEAD"):
        assert (await get(path, method=method, api_key="s3cret")).status_code == (200 if is_open else 401)


ANTHROPIC = {"anthropic-version": "2023-06-01"}


async def get_as_anthropic(path, service=None):
    async with client_of(service or FakeService()) as client:
        return await client.get(f"http://test{path}", headers=ANTHROPIC)


async def test_models_are_in_anthropics_form_for_its_clients():
    reply = await get_as_anthropic("/v1/models?limit=5")
    page = ModelPage.model_validate(reply.json())
    (model,) = page.data
    assert (page.has_more, page.first_id, page.last_id) == (False, "org/tiny", "org/tiny")
    assert (model.id, model.created_at, model.max_tokens) == ("org/tiny", "2023-11-14T22:13:20Z", 200)
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    for path in ("/v1/models/org/tiny", "/v1/models/org%2Ftiny", "//v1/models/org/tiny/"):
        assert (await get_as_anthropic(path)).json() == reply.json()["data"][0]
    assert "object" in (await get("/v1/models")).json()


async def test_errors_about_models_are_in_anthropics_form_for_its_clients():
    missing = await get_as_anthropic("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"
    wrong = await get_as_anthropic("/v1/models?limit=0")
    assert wrong.status_code == 400 and "limit must be a number" in wrong.json()["error"]["message"]
    assert "type" not in (await get("/v1/models/other")).json()
