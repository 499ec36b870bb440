"""What a reader of the tables and the JSON sees."""

import json
from dataclasses import replace

from rich.console import Console

from medusa_dist.bench.report import BenchReport, PeerRow, Row, Side, as_json, as_tables

OFF = Side(20.0, 1.0, 50.0, {"schedule": 0.5, "forward": 49.0, "sample": 0.5}, 0.02)
ON = Side(30.0, 1.6, 53.3, {"schedule": 1.3, "forward": 50.0, "sample": 1.0, "draft": 1.0}, 0.0619)
REPORT = BenchReport(
    machine={"cpu": "a cpu", "threads": 2, "device": "cpu"},
    model="m",
    dtype="float32",
    max_tokens=64,
    waves=2,
    timed="so",
    peer_timed="and so",
    prompts="p.txt",
    prompts_sha256="ab",
    rows=[Row(4, 0.5, 10, ON, OFF, 1.5, 1.4, 1.61, 0.42)],
    peers=[],
    step_cost_ms={4: 20.0, 8: 30.5},
    weight_bytes=538_000_000,
    bandwidth_bytes_per_s=12.5e9,
)
PEER = PeerRow("vllm 1", 8, 10, False, 100.0, 80.0, 1.25, 1.2, 1.3, 79, 80)


def shown(report: BenchReport) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in as_tables(report):
        console.print(table)
    return console.export_text()


def test_tables_show_all_numbers_and_peers_only_if_measured() -> None:
    text = shown(REPORT)
    for part in ("0.5", "1.60", "53.3", "1.50", "1.40 to 1.61", "42 %", "0.54 GB", "12.5 GB/s", "6.2 %", "30.5"):
        assert part in text
    assert "Side by side" not in text
    with_peer = shown(replace(REPORT, peers=[PEER], step_cost_ms={}))
    assert "by number of tokens" not in with_peer
    for part in ("vllm 1", "1.25", "1.20 to 1.30", "79 of 80"):
        assert part in with_peer


def test_json_report_has_sides_peers_and_step_costs() -> None:
    said = json.loads(as_json(replace(REPORT, peers=[PEER])))
    assert said["rows"][0]["off"]["phase_ms"]["forward"] == 49.0 and said["peers"][0]["ratio"] == 1.25
    assert said["step_cost_ms"] == {"4": 20.0, "8": 30.5}
