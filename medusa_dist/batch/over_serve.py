"""Sends batch lines to a Serve application, through Ray Data's ServeDeploymentProcessor.

Owns finding the application, and the number of lines in flight. Not here: how a replica processes a line (batch_line
in app.py), what is done with the responses (passes.py), connecting to Ray (serve/ray_cluster.py).
The processor's actors only pass lines on: they reserve nothing, and own no placement group, which Ray Data would leak.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import ray
import ray.data
from ray import serve
from ray.data import DataContext, TaskPoolStrategy
from ray.data.llm import ServeDeploymentProcessorConfig, build_processor
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from medusa_dist.batch.passes import Deliver
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.serve.ray_cluster import ClusterAddress, join_cluster
from medusa_dist.storage.batch_lines import BatchLine, LineAnswer

BLOCKS = 3  # in flight per replica: one is decoded, one waits at the replica, one is in transit
MIN_BLOCK = 8  # lines; Ray Data spends some ten milliseconds on a block
MAX_BLOCKS = 4000  # per dataset: limits the memory used for a file of any length
MAX_BYTES = 256 * 2**20  # of the bodies in a dataset: the same for long lines
FACTS_S = 60.0


@dataclass(frozen=True, slots=True)
class Portion:
    """Lines of one dataset, as rows of strings: Arrow supports neither mixed types nor what is not Unicode.

    custom_ids: by id; JSON strings, which may not be Unicode.
    """

    rows: list[dict[str, str]]
    custom_ids: dict[str, str | None]


def portions(lines: Iterator[BatchLine], max_lines: int, max_bytes: int) -> Iterator[Portion]:
    """Split lines into portions of at most max_lines, each closed by the line with which it exceeds max_bytes."""
    while True:
        part, num_bytes = Portion([], {}), 0
        for line in islice(lines, max_lines):
            body = json.dumps(line.body)
            part.rows.append({"id": line.id, "url": line.url, "body": body})
            part.custom_ids[line.id] = line.custom_id
            num_bytes += len(body)
            if num_bytes > max_bytes:
                break
        if not part.rows:
            return
        yield part


class ServeSender:
    """app: the application's name; None: the only one. deployment: its deployment's name. Ray must be connected.

    concurrency: lines in flight; None: enough to keep every replica full. note: called with notices for the user.
    Raises ConfigError if the application is not running.
    """

    def __init__(self, app: str | None, deployment: str, concurrency: int | None, note: Callable[[str], None]) -> None:
        self._note = note
        self._deployment = deployment
        self._app = app if app is not None else only_application(deployment)
        self._concurrency = concurrency
        self._facts: dict[str, Any] = {}
        state = serve.status().applications.get(self._app)
        if state is None or state.status != ApplicationStatus.RUNNING or deployment not in state.deployments:
            found = "missing" if state is None else state.status.value
            raise ConfigError(f"application {self._app!r} is {found}; see `serve status` for running ones")

    def describe(self) -> dict[str, Any]:
        """The data of /v1/models."""
        handle = serve.get_deployment_handle(self._deployment, self._app)
        try:
            self._facts = handle.describe.remote().result(timeout_s=FACTS_S)
        except (RayError, RayServeException, TimeoutError) as error:
            raise EngineError(f"application {self._app!r} does not respond: {error}") from None
        return self._facts

    @property
    def num_replicas(self) -> int:
        """The number of replicas, or the maximum under load."""
        states: dict[str, int] = serve.status().applications[self._app].deployments[self._deployment].replica_states
        return max(1, states.get("RUNNING", 0), int(self._facts.get("max_replicas") or 1))

    def block_size(self) -> int:
        """Lines per block: a full batch, as long as all blocks in flight fit into a replica's queue."""
        if self._concurrency is not None:
            return max(1, self._concurrency // (BLOCKS * self.num_replicas))
        running, queued = int(self._facts["max_running"]), int(self._facts["max_queued"])
        return max(1, min(max(MIN_BLOCK, running), (running + queued) // BLOCKS))

    def send(self, lines: Iterator[BatchLine], deliver: Deliver) -> None:
        """See passes.Sender."""
        quiet_ray_data()
        size = self.block_size()
        for part in portions(lines, size * MAX_BLOCKS, MAX_BYTES):
            try:
                self._send_rows(part, size, deliver)
            except (RayError, RayServeException) as error:
                self._note(f"a replica was lost ({_last_line(error)}); its lines will be sent again")

    def _send_rows(self, part: Portion, size: int, deliver: Deliver) -> None:
        rows, custom_ids = part.rows, part.custom_ids
        maps = {"num_cpus": 0, "compute": TaskPoolStrategy(size=2)}
        processor = build_processor(
            ServeDeploymentProcessorConfig(
                deployment_name=self._deployment,
                app_name=self._app,
                batch_size=size,
                concurrency=self.num_replicas,
                should_continue_on_error=True,
            ),
            preprocess=to_call,
            postprocess=to_reply,
            preprocess_map_kwargs=maps,
            postprocess_map_kwargs=maps,
        )
        for name in processor.list_stage_names():
            # No restarts: if one of these actors dies, its lines are sent again.
            processor.get_stage_by_name(name).map_batches_kwargs.update(
                num_cpus=0, max_concurrency=BLOCKS, max_restarts=0, max_task_retries=0
            )
        dataset = processor(ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size)))
        for row in dataset.iter_rows():
            if row["__inference_error__"]:
                self._note(f"a line came back without a response: {_last_line(row['__inference_error__'])}")
                continue
            reply = json.loads(row["reply"])
            answered = (row["id"], custom_ids[row["id"]])
            deliver(LineAnswer(*answered, reply["status"], reply["request_id"], reply["body"]))


def _last_line(error: object) -> str:
    """The last line of an error text that contains tracebacks of Ray."""
    return ([type(error).__name__, *str(error).strip().splitlines()])[-1].strip()[:200]


def to_call(row: dict[str, Any]) -> dict[str, Any]:
    """The processor's input format: the method of the deployment and its arguments."""
    return {"method": "batch_line", "dtype": None, "request_kwargs": {"url": row["url"], "body": row["body"]}}


def to_reply(row: dict[str, Any]) -> dict[str, Any]:
    """The fields returned to the job."""
    return {"id": row["id"], "reply": row["reply"]}


def only_application(deployment: str) -> str:
    """The name of the only application with this deployment. Raises ConfigError if there is none, or several."""
    names: list[str] = [name for name, state in serve.status().applications.items() if deployment in state.deployments]
    if not names:
        raise ConfigError("no model is served on this Ray cluster; start one with --config or `medusa-dist serve`")
    if len(names) > 1:
        raise ConfigError(
            f"several models are served on this Ray cluster; choose one with --app: {', '.join(sorted(names))}"
        )
    return names[0]


def refuse_if_serving(address: ClusterAddress) -> None:
    """Raise ConfigError if the cluster serves anything: deploying a config removes all other applications."""
    if not ray.is_initialized():
        join_cluster(address)
    try:
        names = sorted(serve.status().applications)
    finally:
        ray.shutdown()
    if names:
        raise ConfigError(
            f"the Ray cluster at {address.text!r} already serves {', '.join(names)}, which --config would replace; "
            "remove --config to use what is served"
        )


def quiet_ray_data() -> None:
    """Turn off Ray Data's progress bars and messages: the job shows its own progress."""
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
