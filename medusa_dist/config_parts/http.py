"""Config keys of the HTTP routes: body size and cross-origin access.

Owns these keys and their checks. Not here: address, port and TLS, which are Serve's own (`http_options`).
"""

import re
from typing import Annotated

from pydantic import Field, field_validator

from medusa_dist.config_parts.strict import Strict

# Not a config key: Serve shows configs in its dashboard and API.
API_KEY_VARIABLE = "MEDUSA_DIST_API_KEY"


def _origin_of(text: str) -> str:
    """An origin as browsers send it, in lower case. Raises ValueError for anything else, also for "*"."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:*]+)(:[0-9]{1,5})?", text.lower()):
        raise ValueError(
            f"{text!r} is not an origin; write scheme://host or scheme://host:port as the browser shows it, without a "
            "path or a final slash. There is no wildcard: list each origin"
        )
    standard = {"http": ":80", "https": ":443"}  # browsers leave these out
    return text.lower().removesuffix(standard.get(text.lower().partition("://")[0], " "))


class HttpConfig(Strict):
    """What the HTTP routes accept. Address, port and TLS are Serve's own keys, under http_options."""

    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=8 * 1024**2,
        description="Size of a request body, as sent and after decompression, in bytes. A larger one gets 413 "
        "before anything parses it. 8 MiB of English are about 2 million tokens.",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Web pages that may call this service from a browser, by origin: [https://chat.example.com, "
        "http://localhost:3000]. Exact, no wildcard. Empty: none may.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_origin_of, given))
