"""Batch jobs on a real Serve with the stand-in engine: through Ray Data, through HTTP, and what both must refuse."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
import ray
from ray import serve
from rich.console import Console

from medusa_dist.app import DEPLOYMENT, assemble
from medusa_dist.batch.job import run_batch
from medusa_dist.batch.over_http import HttpSender
from medusa_dist.batch.over_serve import ServeSender, refuse_if_serving
from medusa_dist.batch.service import Target, open_sender
from medusa_dist.errors import ConfigError
from medusa_dist.serve.ray_cluster import ClusterAddress
from tests.support.batch_lines import records, write
from tests.support.batch_server import wait_until
from tests.support.fake_stack import expected
from tests.support.served_fake import STACK, config, folder  # noqa: F401 - a fixture

WORDS = "t5 t0"  # token 5: 5 ms a step


@pytest.fixture(scope="module")
def url(ray_cluster, folder, tmp_path_factory):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    files = {"store": str(tmp_path_factory.mktemp("store"))}
    small = config(folder, tensor_parallel_size=1, max_running=4, max_queued=4, files=files)
    serve.run(assemble(small, STACK), name="batch", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.delete("batch")
    serve.shutdown()


def completion(custom_id: str, prompt, max_tokens: int = 6, **more) -> dict:
    body = {"model": "fake", "prompt": prompt, "max_tokens": max_tokens, **more}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def num_choices(i: int) -> int:
    """Of line i: some have three, one has more than the service can ever hold at once."""
    return 100 if i == 17 else 3 if i % 8 == 0 else 1


def job(count: int) -> list:
    """Good lines, some with several choices, and one line for each way to be bad."""
    lines: list = [completion(f"id{i}", [2, 0, i % 900], n=num_choices(i)) for i in range(count)]
    lines[3:3] = [b"{", completion("no model", "t5 t0") | {"body": {"model": "other", "prompt": "t1 t0"}}]
    lines += [completion("bad field", [1, 0], top_p=7), completion("the engine refuses", [1])]
    return lines


def run(sender, tmp_path, lines, **changes):
    write(tmp_path / "in.jsonl", lines)
    out = io.StringIO()
    counts = run_batch(
        tmp_path / "in.jsonl",
        tmp_path / "out.jsonl",
        lambda: sender,
        Console(file=out),
        4,
        changes.get("existing", "refuse"),
    )
    return counts, {r["custom_id"]: r for r in records(tmp_path / "out.jsonl")}, out.getvalue()


def check(found: dict, lines: list) -> None:
    assert len(found) == len(lines)
    for name, record in found.items():
        if name and name.startswith("id"):
            ids = expected((2, 0, int(name[2:]) % 900), 6)
            texts = [choice["text"] for choice in record["response"]["body"]["choices"]]
            assert [[int(word[1:]) for word in text.split()] for text in texts] == [ids] * len(texts)
            assert len(texts) == num_choices(int(name[2:]))
    assert found[None]["response"] is None
    assert {k: found[k]["response"]["status_code"] for k in ("no model", "bad field", "the engine refuses")} == {
        "no model": 404,
        "bad field": 400,
        "the engine refuses": 400,
    }


def stable(record: dict) -> dict:
    """Without what differs from call to call."""
    response = record["response"]
    body = {k: v for k, v in response["body"].items() if k not in ("id", "created")} if response else None
    return {**record, "response": response and {"status_code": response["status_code"], "body": body}}


def test_ray_data_and_http_give_each_line_the_same_answer(url, tmp_path):
    lines = job(60)
    answers = {}
    for sender in (ServeSender(None, DEPLOYMENT, None, print), HttpSender(url, None)):
        place = tmp_path / type(sender).__name__
        place.mkdir()
        counts, found, _ = run(sender, place, lines)
        assert (counts.num_lines, counts.num_failed) == (len(lines), 4)
        check(found, lines)
        answers[type(sender)] = {name: stable(record) for name, record in found.items()}
    assert answers[ServeSender] == answers[HttpSender]
    body = next(line["body"] for line in lines if isinstance(line, dict) and line["custom_id"] == "id1")
    seed = found["id1"]["response"]["body"]["seed"]
    direct = httpx.post(f"{url}/v1/completions", json={**body, "seed": seed}, timeout=30).json()
    assert direct["choices"] == found["id1"]["response"]["body"]["choices"]


def test_missing_application_or_service_is_refused(url):
    with pytest.raises(ConfigError, match="application 'nope' is missing"):
        ServeSender("nope", DEPLOYMENT, None, print)
    with pytest.raises(ConfigError, match="no service responds at this URL"):
        HttpSender("http://127.0.0.1:9", None).describe()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"config": Path("c.yaml"), "address": "http://h"}, "remove one of them"),
        ({"app": "a", "address": "https://h"}, "remove --app"),
    ],
)
def test_contradicting_options_are_refused_before_a_sender_opens(target, message):
    with pytest.raises(ConfigError, match=message), open_sender(Target(deployment=DEPLOYMENT, **target), print, print):
        raise AssertionError("opened")


def test_a_config_is_not_deployed_over_what_a_cluster_serves(url, monkeypatch):
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the tests' own cluster
    with pytest.raises(ConfigError, match="already serves batch"):
        refuse_if_serving(ClusterAddress("auto", "--address"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)], ids=["kill", "term"])
def test_stopped_job_resumes_where_it_was(url, tmp_path, number, code):
    """kill -9 in the middle, then --resume: each id exactly once, and little done twice."""
    lines = [completion(f"id{i}", [5, 0, i], 20) for i in range(80)]
    write(tmp_path / "in.jsonl", lines)
    command = [sys.executable, "-m", "medusa_dist.cli.main", "batch", "in.jsonl", "out.jsonl", "--address", url]
    partial = tmp_path / "out.jsonl.partial"
    here = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}}
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **here)
    deadline = time.monotonic() + 60
    while not (partial.exists() and len(partial.read_bytes().splitlines()) >= 30):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    first.send_signal(number)
    _, told = first.communicate(timeout=60)
    assert first.returncode == code
    done = len(partial.read_bytes().splitlines())
    assert done < 80
    if number == signal.SIGTERM:
        assert f"stopped: {done} of 80 lines are done and kept in out.jsonl.partial; the same command with" in told
    command.append("--resume")
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **here)
    assert resumed.returncode == 0, resumed.stderr
    found = records(tmp_path / "out.jsonl")
    assert sorted(r["custom_id"] for r in found) == sorted(line["custom_id"] for line in lines)
    assert f"80 lines, job seed 0, {done} already done" in resumed.stderr


def replica_actor():
    names = ray.util.list_named_actors(all_namespaces=True)
    replica = next(n for n in names if n["name"].startswith("SERVE_REPLICA::batch#"))
    return ray.get_actor(replica["name"], namespace=replica["namespace"])


@pytest.mark.slow
def test_replica_killed_during_a_job_loses_no_line(url, tmp_path):
    lines = [completion(f"id{i}", [20, 0, i], 50) for i in range(60)]
    handle = replica_actor()
    killed = []

    class Killing(ServeSender):
        def send(self, lines_, deliver):
            def kill_then(answer):
                if not killed:
                    killed.append(True)
                    ray.kill(handle, no_restart=True)
                deliver(answer)

            super().send(lines_, kill_then)

    counts, found, _ = run(Killing(None, DEPLOYMENT, None, print), tmp_path, lines)
    assert killed and counts.num_failed == 0 and len(found) == 60


def test_batch_of_the_openai_client_survives_the_kill_of_its_replica(url, tmp_path):
    write(tmp_path / "in.jsonl", [completion(f"id{i}", [5, 0, i], 20) for i in range(60)])
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:

        def batch_now() -> openai.types.Batch | None:
            try:
                return client.batches.retrieve(batch.id)
            except openai.APIError:
                return None  # there is no replica

        with (tmp_path / "in.jsonl").open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h", metadata={"a": "b"}
        )
        wait_until(lambda: batch_now().request_counts.completed >= 4)
        ray.kill(replica_actor(), no_restart=True)
        wait_until(lambda: (now := batch_now()) and now.status == "completed", 60.0)
        ended = client.batches.retrieve(batch.id)
        assert (ended.request_counts.total, ended.request_counts.completed) == (60, 60)
        text = client.files.content(ended.output_file_id).text
    found = {record["custom_id"]: record for record in map(json.loads, text.splitlines())}
    assert len(text.splitlines()) == len(found) == 60, "no line is lost or doubled"
    for i in (0, 30, 59):
        answer = found[f"id{i}"]["response"]["body"]["choices"][0]["text"]
        assert [int(word[1:]) for word in answer.split()] == expected((5, 0, i), 20)
