"""The replica policy: its formula, what it does without counters, and simulated bursts under Serve's own delays."""

import heapq
import inspect
import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from medusa_dist.app import DEPLOYMENT, assemble, replicas
from medusa_dist.config import Config
from medusa_dist.errors import ConfigError
from medusa_dist.serve.autoscaling import QueueDepthPolicy, desired_replicas, latest
from medusa_dist.serve.config_file import read_serve_file

CONFIGS = Path(__file__).parents[3] / "serve_configs"


@dataclass
class Sample:
    timestamp: float
    value: float


@pytest.mark.parametrize(
    ("loads", "queued", "now", "wanted"),
    [
        ([0], 0, 1, 0),  # Serve raises it to min_replicas
        ([8], 0, 1, 1),
        ([9], 0, 1, 2),
        ([72], 0, 1, 9),
        ([8, 0, 0], 0, 3, 1),
        ([4, 4, 4], 0, 3, 2),  # load is summed, however it lies
        ([8], 1, 1, 2),
        ([8], 0.99, 1, 1),  # a call on its way through the proxy is no queue
        ([None], 0, 1, 1),
        ([None, 0], 0, 2, 2),  # no replica ends on a guess
        ([None, 40], 0, 2, 5),  # what is known may still ask for more
        ([], 0, 0, 0),
        ([], 17, 0, 3),
    ],
)
def test_desired_replicas_is_load_over_target_rounded_up(loads, queued, now, wanted):
    assert desired_replicas(loads, queued, 8, now) == wanted


def test_newest_report_counts_until_it_is_stale():
    samples = [Sample(11.0, 5.0), Sample(13.0, 2.0), Sample(12.0, 9.0)]
    assert latest(samples, now=14.0, stale_s=10.0) == 2.0
    assert latest(samples, now=23.0, stale_s=10.0) == 2.0
    assert latest(samples, now=23.1, stale_s=10.0) is None
    assert latest([], 14.0, 10.0) is None
    assert latest(None, 14.0, 10.0) is None


def config(**scaling) -> Config:
    return Config.model_validate({"model": "m", "device": "cpu", "max_running": 8, "autoscaling": scaling})


def context(options, reports: dict[str, list[Sample]], **facts) -> AutoscalingContext:
    defaults = {
        "deployment_id": None,
        "deployment_name": DEPLOYMENT,
        "app_name": "a",
        "current_num_replicas": len(reports),
        "target_num_replicas": len(reports),
        "running_replicas": list(reports),
        "total_num_requests": 0.0,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {},
        "raw_metrics": {"sequences": {name: series for name, series in reports.items() if series}},
        "capacity_adjusted_min_replicas": options.min_replicas,
        "capacity_adjusted_max_replicas": options.max_replicas,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": 0.0,
        "config": options,
    }
    if "total_pending_async_requests" in inspect.signature(AutoscalingContext).parameters:  # before Ray 2.60
        defaults["total_pending_async_requests"] = 0
    return AutoscalingContext(**{**defaults, **facts})


def deployed(cfg: Config):
    """What the application hands to Serve, and the policy as Serve's controller gets it: pickled by value."""
    options = replicas(cfg)["autoscaling_config"]
    raw = AutoscalingPolicy.from_serialized_policy_def(
        {"policy_function": options.policy.policy_function, "policy_kwargs": options.policy.policy_kwargs},
        options.policy.get_serialized_policy_def(),
    )
    return options, raw.get_policy()(**raw.policy_kwargs)


def test_policy_reads_serves_context_and_keeps_replicas_that_are_silent():
    options, policy = deployed(config(max_replicas=9))
    fresh = [Sample(100.0, 20.0)]
    assert policy(context(options, {"r1": fresh, "r2": fresh}, current_time=101.0)) == (5, {})
    assert policy(context(options, {"r1": fresh, "r2": []}, current_time=101.0)) == (3, {})  # one has not reported yet
    assert policy(context(options, {"r1": fresh, "r2": fresh}, current_time=500.0)) == (2, {})  # all reports are old
    assert policy(context(options, {"r1": []}, raw_metrics=None, total_queued_requests=None)) == (1, {})


def test_pickled_policy_loads_without_torch_and_medusa_dist():
    options = replicas(config(max_replicas=3))["autoscaling_config"]
    code = (
        "import sys, pickle\n"
        f"policy = pickle.loads({options.policy.get_serialized_policy_def()!r})(target_sequences=8, stale_s=9)\n"
        "assert not any(name.split('.')[0] in ('torch', 'medusa_dist', 'transformers') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", timeout=60)


@dataclass
class Burst:
    """Replicas that decode `width` sequences at once, each for service_s; a new one needs start_s.

    Calls go to the replica with the fewest. A replica that is to end takes no new call and finishes its own.
    """

    scaling: dict
    arrivals: list[float]
    service_s: float
    width: int = 8
    start_s: float = 10.0
    silent: set = field(default_factory=set)  # seconds in which no report arrives

    def run(self, clock, seconds: int) -> list[int]:
        """Replicas wanted, second by second."""
        options, raw_policy = deployed(config(**self.scaling))
        policy, state = _apply_autoscaling_config(raw_policy), {}
        names = itertools.count()
        running: dict[int, list] = {next(names): []}  # name -> heap of end times, the waiting ones included
        starting: list[float] = []
        ending: list[list] = []
        series: dict[int, list[Sample]] = {name: [] for name in running}
        self.lost, history, wanted, due = 0, [], 1, sorted(self.arrivals)
        for now in range(seconds):
            clock[0] = now
            for name in [next(names) for ready in starting if ready <= now]:
                running[name], series[name] = [], []
            starting = [ready for ready in starting if ready > now]
            while due and due[0] <= now:
                due.pop(0)
                self._take(min(running.values(), key=len), now)
            for ends in [*running.values(), *ending]:
                while ends and ends[0] <= now:
                    heapq.heappop(ends)
            if now not in self.silent:
                for name, ends in running.items():
                    series[name].append(Sample(now, len(ends)))
            reports = {name: series[name] for name in running}
            facts = {"target_num_replicas": wanted, "current_time": now, "policy_state": state}
            decision, state = policy(context(options, reports, **facts))
            wanted = max(options.min_replicas, min(options.max_replicas, decision))
            while len(running) + len(starting) < wanted:
                starting.append(now + self.start_s)
            while len(running) + len(starting) > wanted:
                if starting:
                    starting.pop()
                else:
                    ending.append(running.pop(min(running, key=lambda name: len(running[name]))))
            history.append(wanted)
        return history

    def _take(self, ends: list, now: float) -> None:
        begin = now if len(ends) < self.width else heapq.nlargest(self.width, ends)[-1]
        heapq.heappush(ends, begin + self.service_s)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", lambda: now[0])
    return now


SCALING = {"max_replicas": 4, "upscale_delay_s": 3, "downscale_delay_s": 30}


def test_burst_starts_the_needed_replicas_within_the_delay_then_ends_them(clock):
    burst = Burst(SCALING, arrivals=[10.0] * 32, service_s=60)
    wanted = burst.run(clock, 270)
    assert set(wanted[:13]) == {1}
    assert wanted[13] == 4  # 32 sequences / 8, one upscale_delay_s after they came
    assert set(wanted[13:100]) == {4}  # all 32 are on the first replica: it is busy for 4 x 60 s
    assert wanted[130:] == sorted(wanted[130:], reverse=True)
    assert wanted[-1] == 1


def test_replicas_return_to_the_minimum_one_downscale_delay_after_the_end(clock):
    wanted = Burst(SCALING, arrivals=[10.0] * 16, service_s=20).run(clock, 120)
    assert max(wanted) == 2
    end = 10 + 20 * 2
    assert wanted[end + 30 + 2] == 1  # downscale_delay_s after the end, plus a report's and a decision's second


def test_spike_shorter_than_the_delay_starts_no_replica(clock):
    assert set(Burst(SCALING, arrivals=[10.0] * 32, service_s=0.5, width=32).run(clock, 60)) == {1}


def test_flutter_around_the_target_does_not_start_and_end_replicas(clock):
    arrivals = [t + i * 0.01 for t in range(0, 300, 10) for i in range(9 if t % 20 else 7)]
    wanted = Burst(SCALING, arrivals, service_s=9.0).run(clock, 300)
    changes = sum(a != b for a, b in itertools.pairwise(wanted))
    assert changes <= 1


def test_growing_load_is_followed_up_to_the_maximum_and_never_beyond(clock):
    arrivals = [t for t in range(300) for _ in range(1 + t // 60)]
    wanted = Burst(SCALING, arrivals, service_s=8).run(clock, 300)
    # 8 sequences a replica at first, 40 at the end. What piles up while a replica starts asks for more for a while.
    assert set(wanted[:60]) == {1}
    assert all(2 <= count <= 4 for count in wanted[70:180])
    assert set(wanted[190:]) == {4}


def test_no_replica_ends_while_no_report_arrives(clock):
    quiet = set(range(80, 200))
    burst = Burst(SCALING, arrivals=[10.0] * 32, service_s=20, silent=quiet)
    wanted = burst.run(clock, 300)
    assert set(wanted[79:200]) == {2}  # the last report asked for one from second 70 on: it would end at 100
    assert wanted[-1] == 1


def test_invalid_replica_bounds_are_refused_by_name():
    with pytest.raises(
        ValidationError, match=r"autoscaling.max_replicas \(1\) is below autoscaling.min_replicas \(2\)"
    ):
        config(min_replicas=2, max_replicas=1)
    with pytest.raises(ValidationError, match="max_replicas"):
        config()


@pytest.mark.parametrize("key", ["num_replicas: 2", "autoscaling_config: {max_replicas: 2}"])
def test_serves_own_replica_settings_beside_autoscaling_are_refused(tmp_path, key):
    text = (CONFIGS / "autoscale.yaml").read_text()
    path = tmp_path / "both.yaml"
    path.write_text(text.replace("      - name: Medusa", f"      - {key}\n        name: Medusa"))
    with pytest.raises(ConfigError, match=rf"deployments\.{key.split(':')[0]}: args\.autoscaling also sets"):
        read_serve_file(path, DEPLOYMENT)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_max_ongoing_requests_exceed_batch_plus_queue(path):
    file = read_serve_file(path, DEPLOYMENT)
    for application in file.schema.applications:
        cfg = file.configs[application.name]
        for override in application.deployments:
            limit = override.model_dump(exclude_unset=True).get("max_ongoing_requests", 10**9)
            assert limit > cfg.max_running + cfg.max_queued


def test_max_ongoing_requests_below_max_running_is_refused(tmp_path):
    text = (CONFIGS / "autoscale.yaml").read_text()
    path = tmp_path / "narrow.yaml"
    path.write_text(text.replace("max_ongoing_requests: 104", "max_ongoing_requests: 5"))
    with pytest.raises(ConfigError, match=r"max_ongoing_requests: 5 is too low to fill args.max_running \(8\)"):
        read_serve_file(path, DEPLOYMENT)


def test_default_max_ongoing_requests_exceed_batch_plus_queue(monkeypatch):
    monkeypatch.setattr("medusa_dist.serve.placement.ray.cluster_resources", dict)
    cfg = config(max_replicas=3)
    deployment = assemble(cfg, "tests.support.fake_stack")._bound_deployment
    assert deployment.max_ongoing_requests > cfg.max_running + cfg.max_queued
    options = deployment._deployment_config.autoscaling_config
    assert (options.min_replicas, options.max_replicas) == (1, 3)
    assert (options.upscale_delay_s, options.downscale_delay_s) == (3.0, 300.0)
    assert options.policy.policy_kwargs["target_sequences"] == 8
    assert QueueDepthPolicy.__name__ in str(options.policy.policy_function)
