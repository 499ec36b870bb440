"""Cross-origin access: which web pages may call the service from a browser.

Owns the settings of Starlette's CORSMiddleware. Not here: which origins (config.py).
"""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

EXPOSED = ("x-request-id", "retry-after", "retry-after-ms", "x-should-retry")  # what clients read of a response
MAX_AGE_S = 600  # for which a browser may remember a preflight response


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these origins call the service. The layer must be outside of the key check: a preflight has no key.

    No credentials: keys are sent in a header by the page, and there are no cookies.
    """
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=list(EXPOSED),
        max_age=MAX_AGE_S,
    )
