"""lm_eval: log-likelihoods over completions, and generation over both routes, on a small local task."""

import json
import os
import subprocess
import sys

import pytest

from tests.clients.conftest import KEY, MODEL

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.clients

CHOICE = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
GENERATE = (
    "output_type: generate_until\ndoc_to_target: answer\ngeneration_kwargs: {until: ['.'], max_gen_toks: 8}\n"
    "metric_list: [{metric: exact_match}]\n"
)


@pytest.fixture
def tasks(tmp_path):
    lines = [{"q": f"{i} + 1 =", "choices": [str(i + 1), str(i + 2)], "label": 0, "answer": "x"} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, kind in (("tiny_choice", CHOICE), ("tiny_generate", GENERATE)):
        head = f"task: {name}\ndataset_path: json\ntest_split: test\ndoc_to_text: '{{{{q}}}}'\n"
        data = f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}}}\n"
        (tmp_path / f"{name}.yaml").write_text(head + data + kind)
    return tmp_path


@pytest.mark.parametrize(
    "model, route, names",
    [
        ("local-completions", "completions", "tiny_choice,tiny_generate"),
        ("local-chat-completions", "chat/completions", "tiny_generate"),
    ],
)
def test_tasks_are_scored(urls, tasks, model, route, names):
    where = f"model={MODEL},base_url={urls['tiny']}/{route},num_concurrent=2,max_retries=1"
    where += f",tokenizer_backend=huggingface,tokenizer={urls['tokenizer']}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", where, "--tasks", names]
    command += ["--include_path", str(tasks), "--output_path", str(tasks / "out")]
    if model == "local-chat-completions":
        command.append("--apply_chat_template")
    env = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tasks / "out").rglob("results*.json")
    assert set(json.loads(found.read_text())["results"]) == set(names.split(","))
