"""One server for the whole run, in a process of its own: the environment of a client library need not have ours.

`make test-clients` runs these tests in each of the clients' environments. SERVER_PYTHON is the interpreter that serves;
by default, the one that runs the tests.
"""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

# These serve in their own process, for which a client's environment may have nothing.
if importlib.util.find_spec("fastapi") is None:
    collect_ignore = ["test_anthropic_client.py", "test_openai_agents.py"]

ROOT = Path(__file__).parents[2]
KEY, MODEL = "s3cret", "tiny"


@dataclass(frozen=True)
class Served:
    """base_url: what a client is given, with /v1."""

    base_url: str
    model: str = MODEL
    api_key: str = KEY

    def _call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        request = urllib.request.Request(self.base_url.removesuffix("/v1") + path, data, headers)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)

    def script(self, *texts):
        """The scripted model: what it answers to the next requests."""
        self._call("/script", list(texts))

    def seen(self):
        """The scripted model: the prompts since `script`."""
        return self._call("/seen")


def hermes_call(name, **arguments):
    """A call as the scripted model must write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def pytest_collection_modifyitems(config, items):
    if "clients" not in config.option.markexpr:
        for item in items:
            if "urls" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="needs a server: make test-clients"))


@pytest.fixture(scope="session")
def urls():
    command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "tests.support.client_server"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        line = next((line for line in process.stdout if line.startswith("{")), "")
        assert line, "the server did not start"
        yield json.loads(line)
        process.stdin.close()
        process.wait(30)


@pytest.fixture(scope="session")
def tiny(urls):
    """A tiny random model."""
    return Served(urls["tiny"])


@pytest.fixture
def scripted(urls):
    """A model that says what the test wants."""
    return Served(urls["scripted"])
