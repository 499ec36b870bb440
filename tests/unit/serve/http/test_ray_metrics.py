import pytest
from prometheus_client.parser import text_string_to_metric_families

from medusa_dist.errors import EngineError
from medusa_dist.serve.http import ray_metrics

NODE = """\
# HELP ray_node_cpu_count Total CPUs
# TYPE ray_node_cpu_count gauge
ray_node_cpu_count{{ip="10.0.0.{n}"}} 4.0
# HELP ray_medusa_dist_tokens_total Output tokens.
# TYPE ray_medusa_dist_tokens_total counter
ray_medusa_dist_tokens_total{{application="a",replica="r{n}"}} {n}0.0
ray_medusa_dist_tokens_total{{application="b",replica="x{n}"}} 7.0
# HELP ray_serve_num_http_requests Requests.
# TYPE ray_serve_num_http_requests gauge
ray_serve_num_http_requests{{application="a"}} 1.0
# HELP ray_medusa_dist_requests Requests.
# TYPE ray_medusa_dist_requests gauge
ray_medusa_dist_requests{{application="a",route="/v1/\\"odd\\" }} path"}} 3.0
# HELP ray_medusa_dist_time_per_token_seconds Time.
# TYPE ray_medusa_dist_time_per_token_seconds histogram
ray_medusa_dist_time_per_token_seconds_bucket{{application="a",le="0.1",replica="r{n}"}} 1.0
ray_medusa_dist_time_per_token_seconds_bucket{{application="a",le="+Inf",replica="r{n}"}} 2.0
ray_medusa_dist_time_per_token_seconds_count{{application="a",replica="r{n}"}} 2.0
ray_medusa_dist_time_per_token_seconds_sum{{application="a",replica="r{n}"}} 0.5
"""


def samples(text):
    return [
        (sample.name, sample.labels.get("replica"), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def test_join_keeps_own_samples_of_all_nodes_and_drops_others():
    text = ray_metrics.join([NODE.format(n=1), NODE.format(n=2)], "a")
    found = samples(text)
    assert ("ray_medusa_dist_tokens_total", "r1", 10.0) in found
    assert ("ray_medusa_dist_tokens_total", "r2", 20.0) in found
    assert ("ray_medusa_dist_time_per_token_seconds_sum", "r2", 0.5) in found
    assert (
        len(found) == 2 * 6
        and "ray_node_cpu_count" not in text
        and "ray_serve" not in text
        and 'application="b"' not in text
    )
    assert text.count("# TYPE ray_medusa_dist_tokens_total counter") == 1  # a second one would be an error
    assert '\\"odd\\" } path' in text
    assert ray_metrics.join([NODE.format(n=1)], "nobody") == ""


@pytest.fixture
def cluster(monkeypatch):
    """Makes nodes from what they export; None: a node that does not answer. Returns their URLs."""

    def of(**texts):
        urls = {name: f"http://{name}:8080/metrics" for name in texts}

        async def get(client, url, is_here):
            assert is_here == (url == urls["n1"])
            return texts[url.split("/")[2].split(":")[0]]

        monkeypatch.setattr(ray_metrics, "ports", lambda: urls)
        monkeypatch.setattr(ray_metrics, "_get", get)
        monkeypatch.setattr(ray_metrics, "_node_id", lambda: "n1")
        return urls

    return of


async def test_silent_node_is_named_and_other_samples_are_kept(cluster):
    urls = cluster(n1=NODE.format(n=1), n2=None)
    text = await ray_metrics.read("a")
    assert len(samples(text)) == 6 and text.endswith(f"# {urls['n2']} did not answer\n")


async def test_no_answering_node_is_an_engine_error(cluster):
    cluster(n1=None)
    with pytest.raises(EngineError, match="metrics port"):
        await ray_metrics.read("a")


def test_ports_lists_living_nodes_with_a_metrics_port(monkeypatch):
    def node(name, address, port, alive=True):
        return {"NodeID": name, "NodeManagerAddress": address, "MetricsExportPort": port, "Alive": alive}

    nodes = [node("a", "10.0.0.1", 8080), node("b", "fd00::2", 9), node("c", "10.0.0.3", 0), node("d", "x", 1, False)]
    monkeypatch.setattr(ray_metrics.ray, "nodes", lambda: nodes)
    assert ray_metrics.ports() == {"a": "http://10.0.0.1:8080/metrics", "b": "http://[fd00::2]:9/metrics"}
