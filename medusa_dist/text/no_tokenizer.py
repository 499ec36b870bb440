"""NoTokenizer: stands for the tokenizer of a model that is served as token ids alone (skip_tokenizer_init).

Owns the refusal of everything that needs a tokenizer. Not here: empty text (detokenizer.py), names of tokens
(token_text.py), which both know this class. No torch.
"""

from typing import Any, NoReturn

from medusa_dist.errors import RequestError


class NoTokenizer:
    """In the place of a tokenizer. Any use raises RequestError, so that no text is read or made by accident."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to encode. Raises RequestError."""
        raise _refusal("prompt")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _refusal("messages" if "chat_template" in name else None)


def _refusal(param: str | None) -> RequestError:
    return RequestError(
        "this model is served without a tokenizer (skip_tokenizer_init); send token ids, and nothing that needs text: "
        "no messages, stop strings or grammars",
        param,
    )
