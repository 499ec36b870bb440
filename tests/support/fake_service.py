"""A Service without a model: answers with given texts, in given portions."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import httpx

from medusa_dist.api.routes import build_api
from medusa_dist.api.service import Health, Load
from medusa_dist.errors import OverloadedError
from medusa_dist.outputs import FinishReason, Output, SpeculationStats, TokenLogprobs
from medusa_dist.text.tools.chat_format import ChatFormat
from tests.support.tiny_tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id


def ids_of(text):
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


class FakeService:
    name = "org/tiny"
    max_model_len = 200
    vocab_size = len(TOKENIZER)
    tokenizer = TOKENIZER
    system_fingerprint = "fp-noise1"
    sanitize_control_tokens = True
    chat_format = ChatFormat()
    created = 1_700_000_000

    def __init__(self, text="Hello thé 😀!", portion=3):
        self.text, self.portion = text, portion
        self.requests, self.aborted, self.finished = [], [], []
        self.before, self.between = None, None  # errors to raise before the first, or after the first Output
        self.hang_after = None  # Outputs after which nothing comes any more
        self.pause_s = 0.0
        self.default_sampling_params = {}
        self.state = Health(True, "ok: decoding")
        self.requests_per_call = 1000
        self.num_places = 1000  # at the service; further requests are refused
        self.num_here = self.most_here = 0

    def describe(self):
        return {"speculation": "medusa: 4 heads, max 7 nodes"}

    def health(self):
        return self.state

    num_requests = 0

    def load(self):
        return Load(2, 1, 0.25, 40, 16)

    async def metrics(self):
        return "# HELP up 1\n# TYPE up gauge\nup 1.0\n"

    async def abort(self, request_id):
        self.aborted.append(request_id)

    def tokens(self, request):
        """Choice k says the text with k dots behind it, so that choices differ."""
        index = int(request.request_id.rsplit("-", 1)[1])
        return (*ids_of(self.text + "." * index), EOS)

    async def generate(self, request):
        self.requests.append(request)
        if self.num_here >= self.num_places:
            raise OverloadedError("full")
        self.num_here += 1
        self.most_here = max(self.most_here, self.num_here)
        try:
            async with aclosing(self.answer(request)) as outputs:
                async for one in outputs:
                    yield one
        finally:
            self.num_here -= 1

    async def answer(self, request):
        if self.before is not None:
            raise self.before
        ids = self.tokens(request)
        limit = 10**9 if request.params.max_tokens is None else request.params.max_tokens
        reason = FinishReason.STOP if len(ids) <= limit else FinishReason.LENGTH
        ids = ids[:limit]
        done = False
        try:
            for k, start in enumerate(range(0, max(1, len(ids)), self.portion)):
                if k == 1 and self.between is not None:
                    raise self.between
                if self.hang_after is not None and k >= self.hang_after:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.pause_s)
                part = ids[start : start + self.portion]
                last = start + self.portion >= len(ids)
                done = last
                yield output(request, part, reason if last else None, is_first=k == 0)
            self.finished.append(request.request_id)
        finally:
            if not done:
                self.aborted.append(request.request_id)


def scored(ids, num_top):
    """Each token is as likely as its id says, and beaten by `num_top` others."""
    top = ids_of("ABCDEFGHIJKLMNOPQRST")[:num_top]
    return tuple(TokenLogprobs(t, -t / 100, top, (-0.01,) * num_top) for t in ids)


def output(request, part, reason, is_first=True):
    num_top = request.params.logprobs
    logprobs = ()
    if num_top is not None:
        top = tuple(range(65, 65 + num_top))
        logprobs = tuple(TokenLogprobs(t, -0.5, top, (-float("inf"),) * num_top) for t in part)
    prompt_logprobs = ()
    if request.params.prompt_logprobs is not None and is_first:
        prompt_logprobs = (None, *scored(request.prompt_ids[1:], request.params.prompt_logprobs))
    heads = (*range(1, len(part)), 0)
    stats = SpeculationStats(1, 5, tuple(1 for h in heads if h))
    return Output(
        request_id=request.request_id,
        token_ids=part,
        heads=heads,
        logprobs=logprobs,
        finish_reason=reason,
        stats=stats,
        prompt_logprobs=prompt_logprobs,
    )


@asynccontextmanager
async def client_of(service, **kwargs):
    app = build_api(lambda: service, **kwargs)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def chat(**fields):
    return {"model": FakeService.name, "messages": [{"role": "user", "content": "Hi"}], **fields}


def completion(**fields):
    return {"model": FakeService.name, "prompt": "Hi", "max_tokens": 100, **fields}
