"""Our metrics of one application, read from the metrics ports of all nodes and joined.

Owns which of Ray's metrics belong to a service. Not here: our metrics themselves (serve/metrics.py), Ray's port.
Each node exports what its own processes count, and any replica may be asked: one node's part would look like counters
that jump back and forth.
"""

import asyncio
from collections.abc import Iterable

import httpx
import ray
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from medusa_dist.errors import EngineError

PREFIX = "ray_medusa_dist_"  # Serve's own are a hundred times as many, and parsing them would delay streams
TIMEOUT_S = 3.0


class _Joined:
    """A prometheus_client collector of given families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All families."""
        return self._families


def join(texts: Iterable[str], application: str) -> str:
    """One exposition of all samples in the texts (each in Prometheus' text format) that are about an application."""
    families: dict[str, Metric] = {}
    for text in texts:
        ours = [line for line in text.splitlines() if _family(line).startswith(PREFIX)]
        for family in text_string_to_metric_families("\n".join(ours) + "\n"):
            samples = [s for s in family.samples if s.labels.get("application") == application]
            if samples:
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                joined.samples += samples
    registry = CollectorRegistry()
    registry.register(_Joined(families.values()))
    return generate_latest(registry).decode()


def _family(line: str) -> str:
    """The name that a line is about: of its sample, or of its # HELP or # TYPE."""
    return line.split(" ", 3)[2] if line.startswith(("# HELP ", "# TYPE ")) else line


def ports() -> dict[str, str]:
    """The URL of each living node's metrics, by node id. Nodes without a port (Ray without an agent) are left out."""
    return {
        node["NodeID"]: f"http://{_host(node['NodeManagerAddress'])}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort")
    }


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


async def read(application: str) -> str:
    """The metrics of an application from all nodes. Raises EngineError if no node answers.

    A node that does not answer is named in a comment at the end; its samples are missing.
    """
    nodes = await asyncio.to_thread(ports)
    here = _node_id()
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        found = await asyncio.gather(*(_get(client, url, node == here) for node, url in nodes.items()))
    texts = [text for text in found if text is not None]
    if not texts:
        raise EngineError(
            "no node of the cluster answers on Ray's metrics port; does Ray run with its dashboard agent?"
        )
    lost = "".join(f"# {url} did not answer\n" for url, text in zip(nodes.values(), found, strict=True) if text is None)
    return await asyncio.to_thread(join, texts, application) + lost


async def _get(client: httpx.AsyncClient, url: str, is_here: bool) -> str | None:
    """What a node exports, or None. This node's port may listen on its loopback address alone."""
    for one in [url, str(httpx.URL(url).copy_with(host="127.0.0.1"))] if is_here else [url]:
        try:
            response = await client.get(one)
        except httpx.HTTPError:
            continue
        if response.status_code == 200:
            return response.text
    return None
