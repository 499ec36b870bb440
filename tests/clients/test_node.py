"""The `openai` package of npm, and the AI SDK with its provider for OpenAI-compatible servers, in node."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# `make test-clients` installs the packages there.
FOLDER = Path(os.environ.get("NODE_CLIENTS", Path(__file__).parent / "node"))
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not shutil.which("node"), reason="node is not installed"),
    pytest.mark.skipif(not (FOLDER / "node_modules").exists(), reason="needs npm packages: make test-clients"),
]


@pytest.mark.parametrize("file", ["openai.test.mjs", "ai_sdk.test.mjs"])
def test_node_client(urls, file):
    env = {**os.environ, "TINY_URL": urls["tiny"], "SCRIPTED_URL": urls["scripted"]}
    command = ["node", "--test", "--test-concurrency=1", file]
    done = subprocess.run(command, check=False, cwd=FOLDER, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]
