"""A real browser for tests of the page: Chromium, driven by playwright. Without either, the tests are skipped.

CHROMIUM names the browser's program; by default, Debian's, or the one that `playwright install chromium` fetched.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HAS_DRIVER = importlib.util.find_spec("playwright") is not None


def program() -> str | None:
    """The browser's program; None: playwright's own."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    if not HAS_DRIVER:
        pytest.skip("no playwright: `make test-browser` installs it, or `pip install medusa-dist[browser]`")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as driver:
        try:
            made = driver.chromium.launch(executable_path=program(), timeout=180_000)
        except Error as error:
            if "Executable doesn't exist" not in str(error):
                raise
            pytest.skip("no Chromium: `apt install chromium`, or `playwright install chromium`, or set CHROMIUM")
        yield made
        made.close()
