"""A Service of the routes over the engine of an LLM in this process: HTTP and engine together, without Ray."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator
from typing import Any

from medusa_dist.api.service import Health, Load
from medusa_dist.llm import LLM
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from medusa_dist.text.tools.chat_format import ChatFormat


class EngineService:
    """Whoever waits for an output steps the engine for all."""

    name = "tiny"
    system_fingerprint = "tiny-noise1"
    sanitize_control_tokens = True
    chat_format = ChatFormat()
    created = 1_700_000_000
    requests_per_call = 1000

    def __init__(self, llm: LLM) -> None:
        self.engine = llm.engine
        self.tokenizer = llm.tokenizer
        self.max_model_len, self.vocab_size = llm.facts["max_model_len"], llm.facts["vocab_size"]
        self.default_sampling_params = llm.facts["default_sampling_params"]
        self._arrived: dict[str, deque[Output]] = defaultdict(deque)

    def describe(self) -> dict[str, Any]:
        return {}

    def health(self) -> Health:
        return Health(True, "ok")

    num_requests = 0

    def load(self) -> Load:
        stats = self.engine.stats()
        return Load(
            stats.num_running, stats.num_waiting, stats.kv_used_fraction, stats.num_tokens, stats.num_sequence_steps
        )

    async def metrics(self) -> str:
        return "# HELP up 1\n# TYPE up gauge\nup 1.0\n"

    async def abort(self, request_id: str) -> None:
        self.engine.abort(request_id)

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        mine = self._arrived[request.request_id]
        self.engine.submit(request)
        try:
            while True:
                await asyncio.sleep(0)
                if not mine:
                    for output in self.engine.step():
                        self._arrived[output.request_id].append(output)
                    continue
                output = mine.popleft()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self.engine.abort(request.request_id)
