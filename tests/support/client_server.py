"""What the client libraries of tests/clients talk to, as a process: a tiny random model, and a scripted one.

The tiny model has random weights, so only what a grammar enforces can be expected of it: JSON schemas, and calls with
tool_choice required or a named function. What a model says by itself is scripted: POST /script takes the texts of the
next answers, GET /seen returns the prompts since then.

`python -m tests.support.client_server` prints both URLs as one line of JSON, and serves until its stdin is closed.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from medusa_dist import LLM
from medusa_dist.api.routes import build_api
from medusa_dist.text.tools.chat_format import ChatFormat
from medusa_dist.text.tools.formats import FORMATS
from tests.support.engine_service import EngineService
from tests.support.fake_service import EOS, FakeService
from tests.support.http_server import serving
from tests.support.tiny_llm import TREE, save_llm
from tests.support.tool_cases import marks_tokenizer

KEY, MODEL, CONTEXT = "s3cret", "tiny", 8192
TEMPLATE = (
    "{% if tools %}<s>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<eos>{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>\n"
    "{{ call.function | tojson }}\n</tool_call>{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
HERMES = ChatFormat(FORMATS["hermes"], renders_tools=True)


class Scripted(FakeService):
    """The answer to the k-th request is the k-th text, and then the last one again."""

    name, chat_format, max_model_len = MODEL, HERMES, CONTEXT

    def __init__(self) -> None:
        super().__init__(portion=2)
        self.tokenizer = marks_tokenizer()
        self.tokenizer.chat_template = TEMPLATE
        self.vocab_size = len(self.tokenizer)
        self.texts = ["Hello"]

    def tokens(self, request):
        text = self.texts[min(len(self.requests), len(self.texts)) - 1]
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], EOS)

    def set_texts(self, texts: list[str]) -> list[str]:
        self.texts = texts
        self.requests.clear()
        return texts

    def seen(self) -> list[str]:
        return [self.tokenizer.decode(request.prompt_ids) for request in self.requests]


@contextmanager
def tiny_server(folder: Path) -> Iterator[str]:
    """The URL of a tiny random model with heads and tools."""
    save_llm(folder, max_model_len=CONTEXT, tokenizer=marks_tokenizer(), template=TEMPLATE)
    keys = {"kv_cache_tokens": 2 * CONTEXT, "max_batched_tokens": 512, "max_running": 8}
    service = EngineService(LLM(str(folder), heads=str(folder / "heads"), speculation=TREE, **keys))
    service.chat_format = HERMES
    with serving(build_api(lambda: service, KEY)) as url:
        yield f"{url}/v1"


@contextmanager
def scripted_server() -> Iterator[str]:
    """The URL of a scripted model."""
    service = Scripted()
    app = build_api(lambda: service, KEY)
    app.post("/script")(service.set_texts)
    app.get("/seen")(service.seen)
    with serving(app) as url:
        yield f"{url}/v1"


def main() -> None:
    """Serve until stdin is closed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, tiny_server(Path(folder)) as tiny, scripted_server() as scripted:
        print(json.dumps({"tiny": tiny, "scripted": scripted, "tokenizer": folder}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
