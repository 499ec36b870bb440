import pytest

from medusa_dist.config_parts.http import HttpConfig
from tests.support.fake_service import FakeService, chat, client_of

HOME = "https://chat.example.com"
CHAT = "/v1/chat/completions"
HTTP = HttpConfig(cors_origins=(HOME, "http://localhost:3000"))
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def cors(reply):
    return {name for name in reply.headers if name.startswith("access-control")}


@pytest.mark.parametrize("origin", HTTP.cors_origins)
async def test_listed_origin_preflights_without_key_and_calls_with_it(origin):
    async with client_of(FakeService(), api_key="s3cret", http=HTTP) as client:
        asked = await client.options(CHAT, headers={"origin": origin, **PREFLIGHT})
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == origin
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        assert asked.headers["access-control-allow-methods"] == "GET, POST, DELETE"  # of files
        headers = {"origin": origin, "authorization": "Bearer s3cret"}
        reply = await client.post(CHAT, json=chat(), headers=headers)
        assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in reply.headers and "Origin" in reply.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://chat.example.com.evil.example", "null", "http://localhost"]
)
async def test_other_origin_gets_no_permission_and_no_401(origin):
    async with client_of(FakeService(), api_key="s3cret", http=HTTP) as client:
        asked = await client.options(CHAT, headers={"origin": origin, **PREFLIGHT})
        assert asked.status_code == 400 and "access-control-allow-origin" not in asked.headers
        reply = await client.post(CHAT, json=chat(), headers={"origin": origin, "authorization": "Bearer s3cret"})
        assert "access-control-allow-origin" not in reply.headers


async def test_errors_carry_the_permission_of_a_listed_origin():
    service = FakeService()
    service.before = ZeroDivisionError("a bug")
    async with client_of(service, api_key="s3cret", http=HTTP) as client:
        for key, status in (("wrong", 401), ("s3cret", 500)):
            headers = {"origin": HOME, "authorization": f"Bearer {key}"}
            reply = await client.post(CHAT, json=chat(), headers=headers)
            assert reply.status_code == status and reply.headers["access-control-allow-origin"] == HOME


async def test_default_config_gives_no_cross_origin_permission():
    async with client_of(FakeService(), api_key="s3cret") as client:
        asked = await client.options(CHAT, headers={"origin": HOME, **PREFLIGHT})
        assert asked.status_code == 405 and not cors(asked)
        reply = await client.get("/health", headers={"origin": HOME})
        assert reply.status_code == 200 and not cors(reply)
