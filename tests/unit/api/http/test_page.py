"""Who gets the page, with which headers; what its files may contain. tests/browser/ has what it does."""

import re

import httpx
import pytest

from medusa_dist.api.http.page import FOLDER, HEADERS, PREFIX, START, is_shown, page_files, page_note
from medusa_dist.api.routes import build_api
from tests.support.fake_service import FakeService

NAMES = [name for name in page_files() if name != START]
LOCAL, REMOTE = "127.0.0.1", "192.0.2.7"


async def get(path, page=True, caller=REMOTE, api_key=None, **asked):
    app = build_api(FakeService, api_key, page=page)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(caller, 50000))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(asked.pop("method", "GET"), path, **asked)


@pytest.mark.parametrize("path", ["/", *(PREFIX + name for name in NAMES)])
async def test_every_file_comes_with_its_type_and_a_strict_policy(path):
    reply = await get(path)
    assert reply.status_code == 200 and reply.content == (FOLDER / (path.rpartition("/")[2] or START)).read_bytes()
    kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}.get(
        path.rpartition(".")[2], "text/html"
    )
    assert reply.headers["content-type"].startswith(kind)
    for name, value in HEADERS.items():
        assert reply.headers[name] == value
    rules = dict(rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'" and "unsafe" not in str(rules)


async def test_unchanged_files_are_not_sent_again():
    first = await get("/page/main.js")
    again = await get("/page/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await get("/page/main.js", headers={"if-none-match": '"other"'})).status_code == 200
    head = await get("/", method="HEAD")
    assert head.status_code == 200 and not head.content


@pytest.mark.parametrize("path", ["/page/index.html", "/page/nothing.js", "/page/..%2Fbench_prompts.txt"])
async def test_nothing_but_the_page_is_served(path):
    assert (await get(path)).status_code == 404


@pytest.mark.parametrize(
    ("page", "api_key", "caller", "headers", "status"),
    [
        (None, None, LOCAL, {}, 200),
        (None, None, "::1", {}, 200),
        (None, None, REMOTE, {}, 404),
        (None, None, LOCAL, {"x-forwarded-for": REMOTE}, 404),
        (None, None, LOCAL, {"forwarded": f"for={REMOTE}"}, 404),
        (None, "s3cret", LOCAL, {"authorization": "Bearer s3cret"}, 404),
        (None, "s3cret", LOCAL, {}, 401),
        (True, None, REMOTE, {}, 200),
        (True, "s3cret", REMOTE, {}, 200),
        (False, None, LOCAL, {}, 404),
    ],
)
async def test_page_is_shown_to_those_that_the_key_says(page, api_key, caller, headers, status):
    for path in ("/", "/page/main.js"):
        reply = await get(path, page, caller, api_key, headers=headers)
        assert reply.status_code == status, path
        if status == 404 and page is None:
            assert "page: true" in reply.json()["error"]["message"]


async def test_the_pages_files_open_nothing_else():
    for path in ("/v1/models", "/load", "/metrics", "/page/", "/page", "/page/main.js/x", "/docs", "/page/nothing.js"):
        assert (await get(path, True, LOCAL, "s3cret")).status_code == 401, path


async def test_address_below_a_prefix_without_its_last_slash_is_completed():
    """The files' addresses are relative to the page's."""
    app = build_api(FakeService, page=True)
    transport = httpx.ASGITransport(app, root_path="/llm")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.get("/llm")
        assert (reply.status_code, reply.headers["location"]) == (308, "llm/")
        assert str(reply.next_request.url) == "http://test/llm/"
        assert (await client.get("/llm/")).status_code == 200
        assert (await client.get("/llm/page/main.js")).status_code == 200


def test_key_counts_more_than_where_the_caller_is():
    assert is_shown(True, True, False) and not is_shown(False, False, True)
    assert is_shown(None, False, True) and not is_shown(None, True, True) and not is_shown(None, False, False)


def test_link_is_printed_where_it_works():
    assert "http://127.0.0.1:8000/llm/ " in page_note("http://127.0.0.1:8000/llm", None, False)
    assert page_note("http://127.0.0.1:8000", None, True) == page_note("http://127.0.0.1:8000", False, False) == ""
    assert page_note("http://10.0.0.5:8000", None, False) == ""
    assert "http://10.0.0.5:8000/ " in page_note("http://10.0.0.5:8000", True, True)


def test_files_are_small_and_plain():
    """No build step, nothing from elsewhere, no inline code, and no way from text to HTML."""
    texts = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert set(texts) == set(page_files()), "each file is served"
    assert sum(len(text.encode()) for text in texts.values()) <= 150_000
    page = texts[START]
    assert set(re.findall(r'(?:href|src)="([^"#]+)"', page)) <= {f"page/{name}" for name in NAMES}
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", page)
    ways = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "srcdoc",
        "eval(",
        "new Function",
    )
    forbidden = (*ways, "createContextualFragment", "javascript:")
    for name, text in texts.items():
        assert not [word for word in forbidden if word in text], name
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert "@import" not in text and "url(" not in text, name
        for module in re.findall(r'from "(.+)"', text):
            assert module.removeprefix("./") in NAMES, name
