import pytest

from medusa_dist.api.http.paths import without_extra_slashes
from tests.support.fake_service import FakeService, client_of, completion

GETS = ["/v1/models", "/v1/models/org/tiny", "/health", "/ping", "/live", "/version", "/load", "/metrics", "/docs"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", "/"), ("//", "/"), ("", "/"), ("/a", "/a"), ("/a/", "/a"), ("//a///b//", "/a/b"), ("/a/b", "/a/b")],
)
def test_extra_slashes_are_removed_from_a_path(path, expected):
    assert without_extra_slashes(path) == expected


@pytest.mark.parametrize("path", ["/v1/completions/", "//v1/completions", "/v1//completions//"])
async def test_post_with_extra_slashes_keeps_its_body_without_redirect(path):
    service = FakeService()
    async with client_of(service) as client:
        reply = await client.post(f"http://test{path}", json=completion(prompt="Hello"))
    assert reply.status_code == 200 and reply.json()["choices"][0]["text"] == service.text
    assert service.tokenizer.decode(service.requests[0].prompt_ids).endswith("Hello")


@pytest.mark.parametrize("path", [*GETS, "/openapi.json"])
async def test_head_has_status_and_headers_of_get_and_no_body(path):
    async with client_of(FakeService()) as client:
        get, head = await client.get(path), await client.head(path)
        slashed = await client.head(f"{path}/")
    assert get.status_code == head.status_code == slashed.status_code == 200
    assert get.content and not head.content
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name] == slashed.headers[name]


async def test_head_of_an_error_has_its_status_and_no_body():
    async with client_of(FakeService(), api_key="s3cret") as client:
        for path, key, status in (("/v1/models", "", 401), ("/no", "s3cret", 404), ("/v1/completions", "s3cret", 405)):
            reply = await client.head(path, headers={"authorization": f"Bearer {key}"})
            assert (reply.status_code, reply.content) == (status, b"") and reply.headers["x-request-id"]


async def test_slashes_are_removed_below_a_route_prefix():
    """As Ray Serve calls an application below a prefix."""
    async with client_of(FakeService()) as client:
        client._transport.root_path = "/llm"
        for path, status in (("/llm/v1/models", 200), ("/llm//v1/models/", 200), ("/llm/health/", 200), ("/llm", 404)):
            assert (await client.get(path)).status_code == status
