"""Reading: the metrics of a service at one moment, fetched over HTTP.

Owns addresses, the request and the parsing. Not here: what is computed of readings (figures.py), names and labels of
metrics (serve/metrics.py).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from medusa_dist.config_parts.http import API_KEY_VARIABLE
from medusa_dist.errors import ConfigError, EngineError

PREFIX = "ray_medusa_dist_"
DEFAULT = "http://127.0.0.1:8080"  # the metrics port of a Ray that medusa-dist serve has started
TIMEOUT_S = 3.0
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """at: seconds of a monotonic clock. samples: (name without prefix, sorted labels) -> value."""

    at: float
    samples: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def all(self, name: str) -> Iterator[tuple[Labels, float]]:
        """Labels and value of each sample of a metric."""
        return ((dict(labels), value) for (found, labels), value in self.samples.items() if found == name)

    def sum(self, name: str, by: str = "", **where: str) -> Counter[str]:
        """Values added up by a label ("" for those without it), over the samples with these labels."""
        found: Counter[str] = Counter()
        for labels, value in self.all(name):
            if all(labels.get(key) == wanted for key, wanted in where.items()):
                found[labels.get(by, "")] += value  # type: ignore[assignment]  # floats
        return found

    def max(self, name: str, by: str, **where: str) -> dict[str, float]:
        """The largest value by a label."""
        found: dict[str, float] = {}
        for labels, value in self.all(name):
            if all(labels.get(key) == wanted for key, wanted in where.items()):
                found[labels.get(by, "")] = max(value, found.get(labels.get(by, ""), value))
        return found


def parse(text: str, at: float) -> Reading:
    """Our samples in Prometheus' text format."""
    ours = [line for line in text.splitlines() if line.startswith((PREFIX, f"# TYPE {PREFIX}"))]
    return Reading(
        at,
        {
            (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families("\n".join(ours) + "\n")
            for sample in family.samples
        },
    )


def url_of(address: str | None) -> str:
    """Where the metrics are. address: HOST:PORT or a URL, of a service or of a metrics port; None: DEFAULT.

    Raises ConfigError.
    """
    text = DEFAULT if address is None else address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"--address takes HOST:PORT or http(s)://..., not {address!r}")
    base = text.rstrip("/")
    return base if base.endswith("/metrics") else f"{base.removesuffix('/v1')}/metrics"


class Source:
    """Fetches readings of one address. api_key: sent only if the address asks for one."""

    def __init__(
        self, url: str, api_key: str | None, clock: Callable[[], float], transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url
        self._api_key = api_key
        self._clock = clock
        self._client = httpx.Client(timeout=TIMEOUT_S, trust_env=False, transport=transport)

    def read(self) -> Reading:
        """The metrics now. Raises EngineError, with what to do, if there are none of ours."""
        try:
            response = self._client.get(self.url)
            if response.status_code == 401 and self._api_key:
                self._client.headers["authorization"] = f"Bearer {self._api_key}"
                response = self._client.get(self.url)
        except httpx.HTTPError as error:
            raise EngineError(f"{self.url}: {str(error) or type(error).__name__}; is the service up?") from None
        if response.status_code == 401:
            raise EngineError(f"{self.url} asks for an API key; set {API_KEY_VARIABLE}")
        if response.status_code != 200:
            raise EngineError(f"{self.url} answers {response.status_code}; --address takes a service or a metrics port")
        return parse(response.text, self._clock())

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
