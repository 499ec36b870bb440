"""The page in a real browser: ask, stream, stop, hover, keys, switch, errors, API key, narrow window, hostile text."""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from medusa_dist.api.routes import build_api
from medusa_dist.errors import EngineError
from medusa_dist.text.tools.chat_format import ChatFormat
from medusa_dist.text.tools.formats import FORMATS
from tests.support.explained_service import Explained
from tests.support.http_server import serving

pytestmark = pytest.mark.browser
TEXT = "Sunlight bends in raindrops. thé 😀 end"
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    "<a href=\"javascript:document.title='owned'\">x</a> &lt;b&gt; </div></article> \u202e\u0000 ${1+1} {{7*7}}"
)
WAIT_MS = 60_000
Open = Callable[..., Any]


class Tab:
    """A page of the browser, with what went wrong in it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{url}/")

    def until(self, expression: str) -> None:
        """Wait for an expression. playwright's own waiting evaluates text in the page, which its policy forbids."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(50)

    def ask(self, text: str = "Why rainbows?") -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def wait_for_end(self) -> None:
        self.page.wait_for_selector("#send:not([hidden])")
        self.until("document.querySelector('.message footer button') || !document.getElementById('error').hidden")

    def answer(self, index: int = -1) -> str:
        return self.page.locator(".text").nth(index).evaluate("e => e.textContent")

    def step(self) -> str:
        return self.page.inner_text("#step-body")


def as_serve_does(apps: dict[str, Any]) -> Any:
    """Applications below their prefixes, the longest that fits, and Ray Serve's list of them."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/routes":
            await JSONResponse({prefix: "name" for prefix in apps})(scope, receive, send)
            return
        fitting = [prefix for prefix in apps if scope.get("path", "/").startswith(prefix)]
        if not fitting:
            await PlainTextResponse("no application", 404)(scope, receive, send)
            return
        prefix = max(fitting, key=len)
        await apps[prefix]({**scope, "root_path": prefix.rstrip("/")}, receive, send)

    return serve


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Serves a service and opens its page. At the end, nothing may have gone wrong and nobody else been asked."""
    with ExitStack() as stack:
        tabs: list[tuple[Tab, tuple[str, ...]]] = []

        def open_page(
            service: Any,
            api_key: str | None = None,
            expected: tuple[str, ...] = (),
            more: dict[str, Any] | None = None,
            script: Path | None = None,
            **context: Any,
        ) -> Tab:
            """script: runs in the page before its own."""
            services = {"/": service, **(more or {})}
            apps = {prefix: build_api(lambda one=one: one, api_key, page=True) for prefix, one in services.items()}
            url = stack.enter_context(serving(as_serve_does(apps)))
            made = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **context})
            stack.callback(made.close)
            if script is not None:
                made.add_init_script(path=script)
            tabs.append((Tab(made.new_page(), url), expected))
            return tabs[-1][0]

        yield open_page
        for tab, expected in tabs:
            assert [p for p in tab.problems if not any(word in p for word in expected)] == []
            assert tab.hosts <= {tab.url.removeprefix("http://")}, "the page asks nobody else"


def test_answer_is_streamed_and_tinted_by_who_guessed_each_token(opened: Open) -> None:
    service = Explained(TEXT)
    tab = opened(service)
    tab.until("document.title.startsWith('org/tiny')")
    tab.ask()
    tab.wait_for_end()
    assert tab.answer() == TEXT
    spans = tab.page.eval_on_selector_all(".text .t", "all => all.map(e => [e.textContent, e.className])")
    assert "".join(text for text, _ in spans) == TEXT
    kinds = [next(k for k in ("head-1", "lookup", "model") if k in name) for _, name in spans]
    assert kinds[:7] == ["model", "head-1", "lookup", "model", "head-1", "lookup", "model"]
    (request,) = service.requests
    assert request.explain and request.params.speculation and request.params.max_tokens == 256
    assert "tokens" in tab.page.inner_text(".clock")
    assert tab.page.inner_text("#answer-steps") not in ("", "–")
    names, shares = zip(*zip(*[iter(tab.page.inner_text("#acceptance").split("\n"))] * 2, strict=True), strict=True)
    assert names == ("head 1", "lookup") and all(80 < int(share.removesuffix(" %")) < 100 for share in shares)
    tab.until("document.getElementById('kv').textContent === '25 %'")
    assert tab.page.inner_text("#running") == "2"


def test_hover_shows_the_tree_of_a_step_with_confidences_budget_and_reason(opened: Open) -> None:
    tab = opened(Explained(TEXT))
    tab.ask()
    tab.wait_for_end()
    tab.page.hover(".text .head-1 >> nth=0")
    text = tab.step()
    assert "One pass checked 4 guesses; 2 were right, so this pass gave 3 tokens instead of 1." in text
    assert "4 of 7 guesses on offer checked" in text and "more time than it was expected to save" in text
    assert "1.50 times" in text and "2 sequences were decoded together" in text
    drawn = tab.page.eval_on_selector_all(
        "#step-body svg .node", "all => all.map(e => [e.className.baseVal, e.textContent])"
    )
    kinds = [name.split()[1] for name, _ in drawn]
    assert sorted(kinds) == ["accepted", "accepted", "own", "rejected", "rejected", "root"]
    assert any("75 %" in text and "right" in text for name, text in drawn if "accepted" in name)
    assert any("6 %" in text and "wrong" in text and "lookup" in text for name, text in drawn if "rejected" in name)
    assert tab.page.inner_text("#step-title").startswith("Step 2 of ")
    tab.page.click(".as-list summary")
    assert "guessed by head 1, expected right with 75 %: right" in tab.page.inner_text(".as-list")


def test_the_steps_can_be_walked_with_the_keyboard_alone(opened: Open) -> None:
    tab = opened(Explained(TEXT))
    tab.page.focus("#prompt")
    tab.page.keyboard.type("Hi")
    tab.page.keyboard.press("Enter")
    tab.wait_for_end()
    tab.page.locator(".text").focus()
    assert tab.page.inner_text("#step-title").startswith("Step 1 of")
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.inner_text("#step-title").startswith("Step 3 of")
    assert tab.page.inner_text("#status").startswith("Step 3. One pass checked"), "said to screen readers"
    marked = tab.page.eval_on_selector_all(".text .current", "all => all.map(e => e.dataset.step)")
    assert set(marked) == {"2"}
    tab.page.keyboard.press("End")
    last = tab.page.inner_text("#step-title")
    assert last == f"Step {last.split()[-1]} of {last.split()[-1]}"
    tab.page.focus("#step")
    tab.page.keyboard.press("Home")
    assert tab.page.inner_text("#step-title").startswith("Step 1 of")
    assert tab.page.get_attribute("#step", "aria-valuetext").startswith("1: ")


def test_stop_keeps_what_came_and_aborts_the_request(opened: Open) -> None:
    service = Explained("word " * 4000)
    service.pause_s = 0.02
    tab = opened(service)
    tab.ask()
    tab.until("document.querySelectorAll('.text .t').length > 12")
    tab.page.click("#stop")
    tab.wait_for_end()
    assert "stopped" in tab.page.inner_text(".message footer")
    assert tab.answer().startswith("word word") and not service.finished
    service.texts = ["short"]
    tab.ask("Again")
    tab.until("[...document.querySelectorAll('.text')].at(-1).textContent === 'short'")
    prompt = service.tokenizer.decode(service.requests[-1].prompt_ids)
    assert "word word" in prompt and "Why rainbows?" in prompt, "the conversation goes on from what was kept"


def test_switch_runs_the_same_seed_with_and_without_drafts(opened: Open) -> None:
    service = Explained(TEXT)
    service.pause_s = 0.02
    tab = opened(service)
    tab.page.locator("#compare").check(force=True)
    tab.ask()
    tab.page.wait_for_selector(".verdict")
    one, other = service.requests
    assert (one.params.speculation, other.params.speculation) == (True, False)
    assert one.seed == other.seed and one.prompt_ids == other.prompt_ids
    assert tab.answer(0) == tab.answer(1) == TEXT
    assert "Identical: all " in tab.page.inner_text(".verdict") and "times the speed" in tab.page.inner_text(".verdict")
    clocks = tab.page.locator(".clock").all_inner_texts()
    assert len(clocks) == 2 and all(" s · " in clock for clock in clocks)


def test_texts_that_differ_are_called_different(opened: Open) -> None:
    class Liar(Explained):
        def tokens(self, request):
            text = super().tokens(request)
            return text if request.params.speculation else (text[0], text[1], text[0], *text[3:])

    tab = opened(Liar(TEXT))
    tab.page.locator("#compare").check(force=True)
    tab.ask()
    tab.page.wait_for_selector(".verdict")
    assert "The texts differ from token 3 on." in tab.page.inner_text(".verdict")


def test_text_of_the_model_and_of_errors_is_never_html(opened: Open) -> None:
    service = Explained(HOSTILE)
    tab = opened(service, expected=("400",))
    tab.ask(HOSTILE.replace("\u0000", ""))
    tab.wait_for_end()
    assert tab.answer() == HOSTILE
    tab.page.locator(".text .t", has_text="<").first.hover()
    assert "<" in tab.page.inner_text("#step-body")
    inside = "#log :is(img, script, a, b, iframe), #step-body :is(img, script, a, b)"
    assert tab.page.locator(inside).count() == 0
    tab.page.evaluate("document.getElementById('settings').open = true")
    tab.page.fill("#schema", '{"type": "<img src=x onerror=alert(1)>"}')
    tab.ask("again")
    tab.page.wait_for_selector("#error:not([hidden])")
    assert "<img" in tab.page.inner_text("#error") and tab.page.locator("#error img").count() == 0
    assert "owned" not in tab.page.title()


def test_policy_stops_what_the_page_itself_never_does(opened: Open) -> None:
    """Inline code, HTML out of text, and other hosts are refused by the browser."""
    tab = opened(Explained(TEXT), expected=("Content Security Policy", "Trusted", "violates"))
    tried = tab.page.evaluate(
        """async () => {
          const tried = {};
          try { document.body.innerHTML = "<b>x</b>"; tried.html = "done"; } catch (e) { tried.html = e.name; }
          try { await fetch("http://127.0.0.1:9/"); tried.host = "done"; } catch (e) { tried.host = e.name; }
          const script = document.createElement("script");
          try {
            script.textContent = "document.title = 'owned'";
            document.body.append(script);
          } catch (e) { tried.script = e.name; }
          return tried;
        }"""
    )
    assert tried["html"] == "TypeError" and tried["host"] == "TypeError"
    assert tab.page.title() != "owned"
    tab.hosts = set()


def test_api_key_is_asked_for_and_kept_in_the_tab(opened: Open) -> None:
    service = Explained(TEXT)
    tab = opened(service, api_key="s3cret", expected=("401",))
    tab.page.wait_for_selector("#key-form:not([hidden])")
    tab.page.fill("#key", "wrong")
    tab.page.press("#key", "Enter")
    tab.until("document.getElementById('key').value === ''")
    tab.page.wait_for_selector("#key-form:not([hidden])")
    tab.page.fill("#key", "s3cret")
    tab.page.press("#key", "Enter")
    tab.page.wait_for_selector("#key-form", state="hidden")
    tab.ask()
    tab.wait_for_end()
    assert tab.answer() == TEXT
    tab.page.reload()
    tab.until("document.title.startsWith('org/tiny')")
    assert tab.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_error_before_and_in_the_middle_of_an_answer_is_shown(opened: Open) -> None:
    service = Explained(TEXT)
    tab = opened(service, expected=("503",))
    service.before = EngineError("the ranks are restarting")
    tab.ask("First")
    tab.page.wait_for_selector("#error:not([hidden])")
    assert "the ranks are restarting" in tab.page.inner_text("#error")
    assert tab.page.input_value("#prompt") == "First", "the question can be sent again"
    service.before, service.between = None, EngineError("lost in the middle")
    tab.page.press("#prompt", "Enter")
    tab.until("document.getElementById('error').textContent.includes('lost in the middle')")
    assert TEXT.startswith(tab.answer()) and tab.answer()
    service.between = None
    tab.page.press("#prompt", "Enter")
    tab.until("document.getElementById('error').hidden && !document.getElementById('send').hidden")
    assert tab.answer() == TEXT


def test_settings_reach_the_engine(opened: Open) -> None:
    service = Explained('{"a": 1}')
    tab = opened(service)
    tab.page.click("#settings summary")
    values = {"temperature": "0.5", "top_p": "0.9", "top_k": "7", "min_p": "0.05", "repetition_penalty": "1.2"}
    for name, value in {**values, "max_tokens": "33", "seed": "11", "stop-text": "END", "system": "Be brief."}.items():
        tab.page.fill(f"#{name}", value)
    assert tab.page.get_attribute("#top_k", "placeholder") == "40", "the model's own value"
    tab.page.fill("#schema", '{"type": "object"}')
    tab.page.locator("#drafts").uncheck(force=True)
    tab.ask()
    tab.wait_for_end()
    params = service.requests[0].params
    for name, value in values.items():
        assert getattr(params, name) == float(value)
    assert (params.max_tokens, service.requests[0].seed, params.stop, params.speculation) == (33, 11, ("END",), False)
    assert params.grammar is not None
    assert "Be brief." in service.tokenizer.decode(service.requests[0].prompt_ids)
    tab.page.fill("#schema", "{")
    tab.ask("more")
    tab.page.wait_for_selector("#error:not([hidden])")
    assert "The JSON schema is not valid JSON" in tab.page.inner_text("#error") and len(service.requests) == 1


def test_tools_are_offered_where_they_are_served_and_their_results_sent(opened: Open) -> None:
    assert not opened(Explained(TEXT)).page.is_visible("#tools-label")
    service = Explained('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', "Sunny.")
    service.chat_format = ChatFormat(FORMATS["hermes"])
    tab = opened(service)
    tab.page.click("#settings summary")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    tab.page.fill("#tools", json.dumps([tool]))
    tab.ask()
    tab.page.wait_for_selector(".results")
    assert tab.page.inner_text(".call") == 'weather({"city": "Rome"})'
    tab.page.fill(".results textarea", "22 degrees")
    tab.page.click(".results button")
    tab.until("[...document.querySelectorAll('.text')].at(-1).textContent === 'Sunny.'")
    assert "22 degrees" in service.tokenizer.decode(service.requests[-1].prompt_ids)


@pytest.mark.parametrize("width", [360, 390])
def test_narrow_window_has_no_sideways_scrolling_and_a_sheet_for_the_step(opened: Open, width: int) -> None:
    tab = opened(Explained(TEXT * 4), viewport={"width": width, "height": 740}, has_touch=True, is_mobile=True)
    tab.ask()
    tab.wait_for_end()
    tab.page.tap(".text .head-1 >> nth=1")
    tab.page.wait_for_selector("#inspector svg")
    box = tab.page.locator("#inspector").bounding_box()
    assert box["x"] >= 0 and box["width"] <= width and box["y"] + box["height"] <= 741
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.page.tap("#close")
    assert not tab.page.is_visible("#inspector")


CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const paper = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || e.closest("svg")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(paper(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 30)]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa_and_all_fields_have_names(opened: Open, scheme: str) -> None:
    tab = opened(Explained(TEXT), color_scheme=scheme, expected=("400",))
    tab.page.locator("#compare").check(force=True)
    tab.ask()
    tab.page.wait_for_selector(".verdict")
    tab.page.hover(".text .head-1 >> nth=1")
    tab.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    tab.page.evaluate("document.getElementById('error').hidden = document.getElementById('key-form').hidden = false")
    tab.page.evaluate("document.getElementById('error').textContent = 'An error'")
    for number in range(1, 7):
        tab.page.evaluate(
            "n => { const s = document.createElement('span'); s.className = `t head head-${n}`; s.textContent = 'x';"
            "document.querySelector('.text').append(s); }",
            number,
        )
    assert tab.page.evaluate(CONTRAST) == []
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, meter")]
          .filter((e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"""
    )
    assert nameless == []


AXE = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations", "incomplete"] });
  const shown = (list) => list.map((rule) => [rule.id, rule.help, ...rule.nodes.map((node) => node.html)]);
  return { violations: shown(found.violations), incomplete: shown(found.incomplete), passes: found.passes.length };
}"""
# What axe-core leaves to people: text in drawings and over gradients, whose contrast it cannot tell. CONTRAST does.
LEFT_TO_PEOPLE = {"color-contrast"}


def axe_script() -> Path:
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("no axe-core: `make test-browser` installs it")
    return Path(spec.origin).with_name("axe.min.js")


def axe(tab: Tab) -> None:
    """axe-core finds nothing wrong, all its rules taken together, those of good practice too."""
    found = tab.page.evaluate(AXE)
    assert found["violations"] == []
    assert {rule for rule, *_ in found["incomplete"]} <= LEFT_TO_PEOPLE, found["incomplete"]
    assert found["passes"] > 20


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_wrong_in_any_state_of_the_page(opened: Open, scheme: str, width: int) -> None:
    service = Explained(TEXT)
    viewport = {"width": width, "height": 860}
    tab = opened(service, script=axe_script(), color_scheme=scheme, viewport=viewport, expected=("503",))
    axe(tab)  # empty
    tab.ask()
    tab.wait_for_end()
    axe(tab)
    tab.page.click(".text .head-1 >> nth=0")
    tab.page.wait_for_selector("#inspector svg")
    tab.page.click(".as-list summary")
    axe(tab)  # a step, drawn and as a list
    if width < 600:
        tab.page.click("#close")
    tab.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    axe(tab)  # all settings
    tab.page.locator("#compare").check(force=True)
    tab.ask()
    tab.page.wait_for_selector(".verdict")
    axe(tab)  # two answers side by side
    service.before = EngineError("the model is restarting; try again")
    tab.ask()
    tab.page.wait_for_selector("#error:not([hidden])")
    axe(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong_where_the_page_asks_for_the_key(opened: Open, scheme: str) -> None:
    tab = opened(Explained(TEXT), api_key="secret", script=axe_script(), color_scheme=scheme, expected=("401",))
    tab.page.wait_for_selector("#key-form:not([hidden])")
    axe(tab)


def test_page_works_below_a_prefix_and_lists_the_models_of_all_applications(opened: Open, browser: Any) -> None:
    """The address may lack its last slash."""
    second = Explained("I am the second.")
    second.name = "second"
    tab = opened(Explained("I am the first."), more={"/llm": second})
    tab.until("document.querySelectorAll('#model option').length === 2")
    assert tab.page.locator("#model option").all_inner_texts() == ["org/tiny", "second"]
    tab.page.select_option("#model", "second")
    tab.ask()
    tab.wait_for_end()
    assert tab.answer() == "I am the second." and len(second.requests) == 1
    tab.page.goto(f"{tab.url}/llm")
    tab.until("document.title.startsWith('second')")
    assert tab.page.url == f"{tab.url}/llm/"
    tab.ask()
    tab.wait_for_end()
    assert tab.answer() == "I am the second."
