"""An application whose translated routes are given recorded chat completions, instead of a model's."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.responses import StreamingResponse

from medusa_dist.api.messages.route import add_messages
from medusa_dist.api.responses.route import add_responses
from medusa_dist.api.sse import NamedFrames
from tests.support.chat_answers import streamed, whole
from tests.support.fake_service import FakeService


def recorded_app(answer):
    """answer: what `streamed` takes. The routes answer each request with it."""
    app = FastAPI()
    joined = {name: "".join(answer[name]) for name in ("content", "reasoning") if name in answer}

    async def respond(body, request, service, form):
        if not body.stream:
            return JSONResponse(form.whole(whole(**answer | joined)))
        frames = NamedFrames(form.events())
        texts = [*map(frames.chunk, streamed(**answer)), frames.end()]
        return StreamingResponse(iter(texts), media_type="text/event-stream")

    async def prompt_of(body, service):
        raise NotImplementedError

    service = FakeService()
    for add in (add_responses, add_messages):
        add(app, lambda: service, respond, prompt_of)
    return app
