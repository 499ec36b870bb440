"""The whole service over Ray Serve and HTTP, with the stand-in engine: what a client sees when things go wrong."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from medusa_dist.app import assemble
from medusa_dist.config import parse_config
from medusa_dist.serve.replica import system_fingerprint
from tests.support.fake_stack import expected
from tests.support.raw_http import H2C, request, talk
from tests.support.served_fake import STACK, alive, body, config, folder, stream_ids, until  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def url(ray_cluster, folder):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    live = httpx.get(f"http://127.0.0.1:{port}/live/", timeout=10)
    assert (live.status_code, live.text) == (200, "live")  # before there is any application
    serve.run(assemble(config(folder), STACK), name="fake", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    pids = rank_pids()
    serve.delete("fake")
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if alive(pid)]
    serve.shutdown()


def rank_pids() -> list[int]:
    names = sorted(name for name in ray.util.list_named_actors() if name.startswith("medusa:fake:rank"))
    return [ray.get(ray.get_actor(name).place.remote()).pid for name in names]


def requests_inside() -> float:
    replica = serve.get_app_handle("fake")
    return replica.record_autoscaling_stats.remote().result(timeout_s=5)["sequences"]


def test_fingerprint_names_whatever_gives_a_seed_other_tokens() -> None:
    facts = {"dtype": "bfloat16", "device": "cpu", "torch": "2.13", "fingerprint": "w"}
    plain = parse_config({"model": "m"})
    seen = {
        system_fingerprint(plain, facts),
        system_fingerprint(plain.model_copy(update={"quantization": "int8"}), facts),
        *(system_fingerprint(plain, facts | {name: "other"}) for name in facts),
    }
    assert len(seen) == 2 + len(facts)
    assert system_fingerprint(plain.model_copy(update={"max_queued": 7}), facts) in seen


def test_service_answers_completions_models_and_health_over_http(url):
    answer = httpx.post(f"{url}/v1/completions", json=body([1, 0, 5], 6), timeout=60).json()
    assert [int(word[1:]) for word in answer["choices"][0]["text"].split()] == expected((1, 0, 5), 6)
    assert answer["system_fingerprint"].startswith("medusa-")
    card = httpx.get(f"{url}/v1/models", timeout=10).json()["data"][0]
    assert card["quantization"] == "none"
    assert card["id"] == "fake" and card["tensor_parallel_size"] == 2 and card["max_model_len"] == 10_000
    health = httpx.get(f"{url}/health", timeout=10)
    assert (health.status_code, health.text) == (200, "ok")


def test_load_shows_what_runs(url):
    def running():
        return httpx.get(f"{url}/load", timeout=10).json()["running_sequences"]

    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(stream_ids, url, [20, 0, 5], 100)
        until(lambda: running() == 1)
        assert len(stream.result()) == 100
    until(lambda: running() == 0)


def test_page_is_shown_to_callers_on_this_machine(url):
    """Through Serve's proxy, which passes on who calls; a proxy before it says that somebody else does."""
    for path, kind in (("/", "text/html"), ("/page/main.js", "text/javascript")):
        reply = httpx.get(f"{url}{path}", timeout=10)
        assert reply.status_code == 200 and reply.headers["content-type"].startswith(kind)
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")
        assert httpx.get(f"{url}{path}", headers={"x-forwarded-for": "192.0.2.7"}, timeout=10).status_code == 404


@pytest.mark.parametrize("given", ["mine", None])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[("GET", "/health", 200), ("HEAD", "/v1/models", 200), ("GET", "/nothing", 404), ("POST", "/v1/models", 405)],
        *[("POST", "/v1/completions", 200), ("POST", "/v1/completions?stream", 200), ("GET", "/live", 200)],
    ],
)
def test_response_has_one_request_id_and_it_is_the_clients(url, method, path, status, given):
    content = body([1, 0, 5], 6, stream="stream" in path) if "completions" in path else None
    headers = {} if given is None else {"x-request-id": given}
    answer = httpx.request(method, url + path, json=content, headers=headers, timeout=60)
    ids = answer.headers.get_list("x-request-id")
    assert answer.status_code == status and len(ids) == 1
    assert ids[0] == given if given else ids[0]


@pytest.mark.parametrize("path", ["//v1/completions", "/v1//completions/"])
def test_h2c_upgrade_and_extra_slashes_keep_the_body(url, path):
    call = request("POST", path, H2C, json.dumps(body([1, 0, 5], 6)).encode())
    for status, headers, content in talk(int(url.rsplit(":", 1)[1]), call, call):
        assert status == 200 and "upgrade" not in headers
        text = json.loads(content)["choices"][0]["text"]
        assert [int(word[1:]) for word in text.split()] == expected((1, 0, 5), 6)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_client_that_still_writes_a_large_body_reads_its_413(url, is_chunked):
    """It is sent while the client still writes."""
    size = 20 * 2**20
    answer = httpx.post(
        f"{url}/v1/completions", content=(bytes(2**20) for _ in range(20)) if is_chunked else bytes(size), timeout=60
    )
    assert answer.status_code == 413 and "http.max_body_bytes" in answer.json()["error"]["message"]


def test_refusal_by_the_engine_is_400_naming_the_field(url):
    answer = httpx.post(f"{url}/v1/completions", json=body([1], 5), timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_lost_rank_in_mid_stream_changes_no_token(url, how):
    before = rank_pids()
    seen_health = set()
    done = threading.Event()

    def watch_health():
        while not done.is_set():
            seen_health.add(httpx.get(f"{url}/health", timeout=10).status_code)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch_health)

    def kill(count):
        if count >= 30 and not watcher.is_alive() and not done.is_set():
            watcher.start()
            os.kill(before[1], how)

    assert stream_ids(url, [10, 0], 200, kill) == expected((10, 0), 200)
    until(lambda: httpx.get(f"{url}/health", timeout=10).status_code == 200)
    done.set()
    watcher.join()
    assert 503 in seen_health
    assert not [pid for pid in before if alive(pid)]
    assert len(rank_pids()) == 2


def scrape() -> dict[str, float]:
    """All samples of ours on Ray's metrics ports, summed over labels other than head and reason."""
    samples: dict[str, float] = {}
    for node in ray.nodes():
        text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
        for line in text.splitlines():
            if line.startswith("ray_medusa_dist_") and "_bucket" not in line:
                name, value = line.split("{")[0], float(line.rsplit(" ", 1)[1])
                assert 'model="fake"' in line and 'deployment="Medusa"' in line and "replica=" in line
                samples[name] = samples.get(name, 0.0) + value
    return samples


def test_metrics_route_has_tokens_of_this_application_only(url):
    stream_ids(url, [1, 0, 9], 5)

    def tokens():
        text = httpx.get(f"{url}/metrics", timeout=10).text
        families = {family.name: family.samples for family in text_string_to_metric_families(text)}
        assert all(s.labels["application"] == "fake" for samples in families.values() for s in samples)
        return sum(s.value for s in families.get("ray_medusa_dist_tokens", []) if s.labels["model"] == "fake")

    until(lambda: tokens() >= 5, seconds=30)


def test_metrics_of_a_request_are_on_rays_metrics_port(url):
    before = scrape().get("ray_medusa_dist_tokens_total", 0.0)
    stream_ids(url, [1, 0, 9], 50)
    until(lambda: scrape().get("ray_medusa_dist_tokens_total", 0.0) >= before + 50, seconds=30)
    names = scrape()
    for name in (
        "requests",
        "running_sequences",
        "kv_used_fraction",
        "tokens_per_step",
        "group_up",
        "group_start_seconds",
        "sequence_steps_total",
        "requests_ended_total",
        "time_to_first_token_seconds_count",
        "time_per_token_seconds_sum",
    ):
        assert f"ray_medusa_dist_{name}" in names


@pytest.mark.slow
def test_state_of_the_group_stays_on_rays_metrics_port(url):
    """For longer than Ray keeps a gauge that nobody sets anew."""
    wanted = {f"ray_medusa_dist_{name}" for name in ("group_up", "group_start_seconds", "generation")}
    until(lambda: wanted <= scrape().keys(), seconds=60)
    for _ in range(20):
        time.sleep(1.5)
        assert wanted <= scrape().keys()


def test_client_disconnect_frees_its_request(url):
    with httpx.stream("POST", f"{url}/v1/completions", json=body([10, 0], 5000, stream=True), timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        assert requests_inside() == 1
    until(lambda: requests_inside() == 0)


def test_call_of_128_sequences_is_answered_by_replica_with_six_places(url):
    answer = httpx.post(f"{url}/v1/completions", json=body([1, 0, 7], 4, n=128), timeout=60)
    assert answer.status_code == 200
    texts = [choice["text"] for choice in answer.json()["choices"]]
    assert [[int(word[1:]) for word in text.split()] for text in texts] == [expected((1, 0, 7), 4)] * 128


def test_full_replica_answers_429_at_once_and_running_requests_finish(url):
    results: dict[int, list[int]] = {}

    def read(i):
        results[i] = stream_ids(url, [10, 0, i], 200)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for reader in readers:
        reader.start()
    until(lambda: requests_inside() == 6)
    start = time.monotonic()
    answer = httpx.post(f"{url}/v1/completions", json=body([1, 0], 5), timeout=10)
    assert time.monotonic() - start < 1.0
    assert answer.status_code == 429 and float(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error"
    for reader in readers:
        reader.join()
    assert results == {i: expected((10, 0, i), 200) for i in range(6)}
