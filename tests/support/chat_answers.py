"""Chat completions as the chat route answers them, whole and in chunks: what translations of other APIs are given.

With reasoning and tool calls, so in the shapes that models with them have.
"""

IDENT = "5ca1ab1e"
HEAD = {
    "id": f"chatcmpl-{IDENT}",
    "created": 1_700_000_001,
    "model": "org/tiny",
    "system_fingerprint": "fp-noise1",
}
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 16},
}
CALLS = [("call_a", "find", '{"q": "thé", "n": 2}'), ("call_b", "stop", "{}")]


def logprob(text):
    one = {"token": text, "bytes": list(text.encode()), "logprob": -0.5}
    return one | {"top_logprobs": [one]}


def whole(content=None, reasoning=None, calls=(), finish="stop", stop_reason=None, logprobs=None, usage=None):
    """A chat completion with one choice."""
    message = {"role": "assistant", "content": content, "refusal": None}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": logprobs and {"content": logprobs, "refusal": None},
        "finish_reason": finish,
        "stop_reason": stop_reason,
    }
    extras = {"seed": 7, "acceptance": "exact", "metrics": {"speculative_decoding": None}}
    return HEAD | {"object": "chat.completion", "choices": [choice], "usage": USAGE | (usage or {})} | extras


def chunk(delta=None, finish=None, stop_reason=None, tokens=0, logprobs=None):
    """One chunk with continuous usage; delta None: the last one, which has the usage alone."""
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs and {"content": logprobs, "refusal": None},
        "finish_reason": finish,
        "stop_reason": stop_reason,
    }
    usage = USAGE | {"completion_tokens": tokens, "total_tokens": 20 + tokens}
    return HEAD | {"object": "chat.completion.chunk", "choices": [] if delta is None else [choice], "usage": usage}


def streamed(content=(), reasoning=(), calls=(), finish="stop", stop_reason=None):
    """The chunks of the completion that `whole` gives for the joined texts; content and reasoning come in pieces.

    A call comes as its id and name, and then two fragments of its arguments.
    """
    deltas = [{"reasoning_content": text} for text in reasoning] + [{"content": text} for text in content]
    for index, (id, name, arguments) in enumerate(calls):
        start = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        parts = [arguments[:1], arguments[1:]]
        more = [{"index": index, "function": {"arguments": part}} for part in parts]
        deltas += [{"tool_calls": [call]} for call in (start, *more)]
    chunks = [chunk({"role": "assistant", "content": ""}, tokens=1)]
    chunks[0] |= {"seed": 7, "acceptance": "exact"}
    chunks += [chunk(delta, tokens=2 + i) for i, delta in enumerate(deltas)]
    return [*chunks, chunk({}, finish, stop_reason, tokens=9), chunk(tokens=9)]


def events_of(translator, chunks):
    """All events that a translator makes of chunks."""
    return [event for one in chunks for event in translator.chunk(one)] + list(translator.end())
