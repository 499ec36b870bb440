import pytest

from medusa_dist.api.routes import build_api
from medusa_dist.api.schema.responses import ErrorReply
from medusa_dist.errors import ConfigError
from tests.support.fake_service import FakeService, chat, client_of, completion

ROUTES = ["/v1/models", "/v1/models/org/tiny", "/openapi.json", "/docs", "/nothing", "/healthy", "/health/x"]


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "Bearer s3cret2", "Basic s3cret", "s3cret"])
async def test_without_the_key_every_route_but_health_is_401(given):
    headers = {} if given is None else {"authorization": given}
    service = FakeService()
    async with client_of(service, api_key="s3cret") as client:
        replies = [await client.get(route, headers=headers) for route in ROUTES]
        replies.append(await client.post("/v1/chat/completions", json=chat(), headers=headers))
        for reply in replies:
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["x-request-id"]
            ErrorReply.model_validate(reply.json())
            assert reply.json()["error"]["code"] == "invalid_api_key" and "s3cret" not in reply.text
        assert (await client.get("/health", headers=headers)).status_code == 200
    assert not service.requests


@pytest.mark.parametrize("given", ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret "])
async def test_valid_key_opens_every_route(given):
    async with client_of(FakeService(), api_key="s3cret") as client:
        reply = await client.post("/v1/chat/completions", json=chat(), headers={"authorization": given})
        assert reply.status_code == 200
        assert (await client.get("/nothing", headers={"authorization": given})).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "s3cret"}, 200),
        ({"x-api-key": " s3cret "}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": ""}, 401),
        ({"authorization": "Basic x", "x-api-key": "s3cret"}, 200),
        ({"authorization": "Bearer wrong", "x-api-key": "s3cret"}, 401),
    ],
)
async def test_the_key_may_come_as_x_api_key_if_there_is_no_bearer(headers, status):
    async with client_of(FakeService(), api_key="s3cret") as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_non_ascii_authorization_header_is_401():
    async with client_of(FakeService(), api_key="s3cret") as client:
        reply = await client.get("/v1/models", headers={"authorization": b"Bearer \xe9\xff"})
        assert reply.status_code == 401


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "line\n"])
def test_unusable_api_key_is_a_config_error(key):
    with pytest.raises(ConfigError, match="api_key"):
        build_api(FakeService, key)


async def test_valid_request_id_is_kept_and_invalid_ones_are_replaced():
    async with client_of(FakeService()) as client:
        kept = await client.get("/health", headers={"x-request-id": "abc-1"})
        assert kept.headers["x-request-id"] == "abc-1"
        for odd in (b"", b"a b", b"x" * 129, b"\xff"):
            reply = await client.get("/health", headers={"x-request-id": odd})
            assert reply.headers["x-request-id"].startswith("req-")
        first, second = [await client.get("/health") for _ in range(2)]
        assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("route", ["/health", "/v1/models", "/nothing", "/v1/completions"])
async def test_response_behind_serve_has_no_request_id_header(route):
    """Serve appends the header to whatever it gets, also to errors."""
    service = FakeService()
    service.before = ZeroDivisionError("a bug")
    async with client_of(service, behind_serve=True) as client:
        for reply in (await client.get(route), await client.post(route, json=completion())):
            assert "x-request-id" not in reply.headers


@pytest.mark.parametrize(("given", "logged"), [(b"abc-1", "abc-1"), (b"a b\xff", "a?b?"), (b"x" * 200, "x" * 128)])
async def test_error_behind_serve_names_the_id_that_serve_returns(given, logged):
    service = FakeService()
    service.before = ZeroDivisionError("a bug")
    async with client_of(service, behind_serve=True) as client:
        reply = await client.post("/v1/completions", json=completion(), headers={"x-request-id": given})
    assert reply.json()["error"]["message"] == f"internal error; request id {logged}"
