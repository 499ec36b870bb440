"""The text of a metrics port, made up."""

from typing import Any

LABELS = {"model": "m", "replica": "a", "application": "app"}


def exposition(samples: dict[str, float | list[tuple[dict[str, Any], float]]], **labels: str) -> str:
    """name -> value, or [(more labels, value)]; Ray's prefix and labels are added, and metrics that are not ours."""
    lines = ["# TYPE ray_node_cpu gauge", 'ray_node_cpu{ip="1"} 5']
    for name, given in samples.items():
        family = name.removesuffix("_bucket")
        kind = "histogram" if family != name else "counter" if name.endswith("_total") else "gauge"
        lines.append(f"# TYPE ray_medusa_dist_{family} {kind}")
        for more, value in given if isinstance(given, list) else [({}, given)]:
            listed = ",".join(f'{key}="{text}"' for key, text in (LABELS | labels | more).items())
            lines.append(f"ray_medusa_dist_{name}{{{listed}}} {value}")
    return "\n".join(lines) + "\n"
