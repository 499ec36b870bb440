import pytest

from medusa_dist.api.schema.responses import ErrorReply
from tests.support.fake_service import FakeService, client_of

CHAT = "/v1/chat/completions"


async def message(method, path, status, root=""):
    async with client_of(FakeService()) as client:
        client._transport.root_path = root
        reply = await client.request(method, root + path)
    assert reply.status_code == status
    ErrorReply.model_validate(reply.json())
    return reply.json()["error"]["message"]


@pytest.mark.parametrize("root", ["", "/llm"])
@pytest.mark.parametrize(
    ("path", "hint", "meant"),
    [
        ("/chat/completions", "must end with /v1", CHAT),
        ("/models", "must end with /v1", "/v1/models"),
        ("/models/org/tiny", "must end with /v1", "/v1/models/org/tiny"),
        ("/v1/v1/chat/completions", "only once", CHAT),
        ("/v1/chat/completions/chat/completions", "without the path of a route", CHAT),
        ("/v1/completions/models", "without the path of a route", "/v1/models"),
        ("/api/v1/chat/completions", "nothing but /v1", CHAT),
        ("/v1/health", "not below /v1", "/health"),
        ("/v1/tokenize", "not below /v1", "/tokenize"),
    ],
)
async def test_404_names_the_path_meant_and_the_fault_of_the_base_url(root, path, hint, meant):
    text = await message("POST", path, 404, root)
    assert text.startswith(f"there is no POST {path}; ") and hint in text and text.endswith(f"The path is {meant}")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/rerank", "/v1/embeddings", "/nothing", "/v2/chat/completions"])
async def test_404_without_a_guess_lists_all_paths(path):
    text = await message("POST", path, 404)
    assert f"there is no POST {path};" in text and CHAT in text and "/detokenize" in text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("DELETE", "/v1/models/org/tiny", "GET"), ("PUT", "/ping", "GET")],
)
async def test_405_names_the_method_to_use(method, path, allowed):
    text = await message(method, path, 405)
    assert text.startswith(f"{method} is not allowed on {path}; use ") and allowed in text


async def test_unknown_model_keeps_its_own_404_message():
    assert "this service serves 'org/tiny'" in await message("GET", "/v1/models/other", 404)
