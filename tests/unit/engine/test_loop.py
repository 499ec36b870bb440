"""The loop: order of commands, sign of life, heartbeats, refusals, stalls, and what happens when the engine raises."""

import logging
import threading
import time

import pytest

from medusa_dist.engine.loop import EngineLoop
from medusa_dist.engine.messages import Abort, Refusal, Submit
from medusa_dist.engine.stats import EngineStats
from medusa_dist.engine.steps.samples import StepSample
from medusa_dist.errors import RequestError
from medusa_dist.grammar import Grammar
from medusa_dist.outputs import FinishReason, Output
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams


class CountingEngine:
    """Emits 0, 1, 2, ... per request and records which thread called what."""

    def __init__(self, step_s: float = 0.0):
        self.running: dict[str, tuple[int, int]] = {}
        self.log: list[str] = []
        self.threads: set[int] = set()
        self.step_s = step_s
        self.num_sampled = 0

    def _called(self, what: str) -> None:
        self.log.append(what)
        self.threads.add(threading.get_ident())

    def submit(self, request: Request, output_ids: tuple[int, ...] = ()) -> None:
        self._called(f"submit {request.request_id}")
        if not request.prompt_ids:
            raise RequestError("the prompt is empty", "prompt")
        self.running[request.request_id] = (len(output_ids), request.params.max_tokens or 10**9)

    def abort(self, request_id: str) -> None:
        self._called(f"abort {request_id}")
        self.running.pop(request_id, None)

    def step(self) -> list[Output]:
        self._called("step")
        time.sleep(self.step_s)
        outputs = []
        for name, (done, limit) in list(self.running.items()):
            if name == "bomb":
                raise RuntimeError("step failed")
            self.running[name] = (done + 1, limit)
            finish = FinishReason.LENGTH if done + 1 == limit else None
            if finish:
                del self.running[name]
            outputs.append(Output(request_id=name, token_ids=(done,), heads=(0,), finish_reason=finish))
        return outputs

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def heartbeat(self) -> None:
        self._called("heartbeat")

    def stop(self) -> None:
        self._called("stop")

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.running))

    def take_samples(self) -> list[StepSample]:
        self.threads.add(threading.get_ident())
        steps = self.log.count("step") - self.num_sampled
        self.num_sampled += steps
        return [StepSample({"forward": 0.001}, 0, (1,), ())] * steps


def request(name: str, max_tokens: int | None = 5, prompt: tuple[int, ...] = (1,)) -> Request:
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=max_tokens), seed=0)


class Running:
    """A loop on its own thread."""

    def __init__(self, engine: CountingEngine, heartbeat_s: float = 5.0, stall_s: float = 5.0):
        self.loop = EngineLoop(engine, heartbeat_s, stall_s, generation=3)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.loop.run()
        except Exception as error:
            self.error = error

    def __enter__(self) -> EngineLoop:
        self.thread.start()
        return self.loop

    def __exit__(self, *exc: object) -> None:
        self.loop.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


def read_until_finished(loop: EngineLoop, names: set[str]) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {name: [] for name in names}
    open_names = set(names)
    numbers = []
    for batch in loop.batches():
        assert batch.generation == 3
        numbers.append(batch.number)
        for message in batch.messages:
            assert isinstance(message, Output)
            ids[message.request_id] += message.token_ids
            if message.finish_reason:
                open_names.discard(message.request_id)
        if not open_names:
            break
    assert numbers == list(range(len(numbers)))
    return ids


def test_requests_are_logged_with_their_ids_and_without_their_tokens(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "medusa_dist.engine.loop")
    with Running(CountingEngine()) as loop:
        loop.post([Submit(request("a", 3, prompt=(7, 7)))])
        read_until_finished(loop, {"a"})
    arrived, ended = (record for record in caplog.records if vars(record).get("request") == "a")
    assert (arrived.getMessage(), arrived.prompt_tokens, arrived.output_tokens) == ("a request arrives", 2, 0)
    assert (ended.getMessage(), ended.reason) == ("a request ended", "length")


def test_each_step_has_one_sample_in_the_stream():
    engine = CountingEngine()
    with Running(engine) as loop:
        loop.post([Submit(request("a", 40))])
        samples, ended = 0, False
        for batch in loop.batches():
            samples += len(batch.samples)
            ended = ended or any(isinstance(m, Output) and m.finish_reason for m in batch.messages)
            if ended and not batch.messages:  # a later batch brings what the last step left
                break
        assert samples == engine.log.count("step") == 40


def test_requests_of_two_threads_are_run_whole_by_the_engine_thread():
    engine = CountingEngine()
    running = Running(engine)
    with running as loop:
        names = [f"r{i}" for i in range(20)]
        halves = [
            threading.Thread(target=lambda h=h: loop.post(Submit(request(n)) for n in h))
            for h in (names[:10], names[10:])
        ]
        for half in halves:
            half.start()
        ids = read_until_finished(loop, set(names))
    assert all(tokens == [0, 1, 2, 3, 4] for tokens in ids.values())
    assert engine.threads == {running.thread.ident}
    assert engine.log[-1] == "stop"


def test_output_ids_reach_the_engine():
    with Running(CountingEngine()) as loop:
        loop.post([Submit(request("a"), output_ids=(7, 7, 7))])
        assert read_until_finished(loop, {"a"}) == {"a": [3, 4]}


def test_abort_after_submit_in_one_post_leaves_nothing_running():
    engine = CountingEngine()
    with Running(engine) as loop:
        loop.post([Submit(request("a", max_tokens=None)), Abort("a"), Abort("never seen"), Submit(request("b"))])
        assert read_until_finished(loop, {"b"}) == {"b": [0, 1, 2, 3, 4]}
    assert not engine.running


def test_refused_request_harms_no_other():
    with Running(CountingEngine()) as loop:
        loop.post([Submit(request("bad", prompt=())), Submit(request("good"))])
        messages = []
        for batch in loop.batches():
            messages += batch.messages
            if any(isinstance(m, Output) and m.finish_reason for m in messages):
                break
    refusal = next(m for m in messages if isinstance(m, Refusal))
    assert refusal.request_id == "bad"
    assert isinstance(refusal.error, RequestError) and refusal.error.param == "prompt"


def test_idle_engine_sends_heartbeats_and_empty_batches():
    engine = CountingEngine()
    with Running(engine, heartbeat_s=0.1) as loop:
        batch = next(loop.batches())
        assert batch.messages == () and batch.age_s < 1.0 and batch.stats == EngineStats()
    assert 5 <= engine.log.count("heartbeat") <= 11  # one second at ten a second
    assert "step" not in engine.log


def test_batch_age_grows_while_a_step_hangs():
    engine = CountingEngine(step_s=1.5)
    with Running(engine) as loop:
        loop.post([Submit(request("a", max_tokens=1))])
        time.sleep(0.1)
        assert next(loop.batches()).age_s > 0.9


def test_outputs_before_a_failing_step_are_delivered_then_the_stream_ends():
    running = Running(CountingEngine())
    with running as loop:
        loop.post([Submit(request("a", max_tokens=3))])
        while loop._engine.has_work or "step" not in loop._engine.log:
            time.sleep(0.01)
        loop.post([Submit(request("bomb"))])
        messages = [m for batch in loop.batches() for m in batch.messages]
    assert [t for m in messages for t in m.token_ids] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="step failed"):
        raise running.error


def test_request_whose_output_is_never_read_is_aborted(monkeypatch):
    monkeypatch.setattr("medusa_dist.engine.loop.MAX_WAITING_TOKENS", 10)
    engine = CountingEngine(step_s=0.001)
    with Running(engine, stall_s=0.1) as loop:
        loop.post([Submit(request("a", max_tokens=None))])
        deadline = time.monotonic() + 5
        while "abort a" not in engine.log and time.monotonic() < deadline:
            time.sleep(0.01)
        message = next(loop.batches()).messages[0]
    assert not engine.running
    assert message.finish_reason == FinishReason.ABORT
    assert message.token_ids == tuple(range(len(message.token_ids)))


def test_grammars_are_compiled_by_the_thread_that_posts(monkeypatch):
    """Before the engine sees the request, and never in the middle of its steps."""
    engine = CountingEngine()
    prepared = []
    monkeypatch.setattr(engine, "prepare", lambda r: prepared.append(threading.current_thread().name), raising=False)
    loop = EngineLoop(engine, heartbeat_s=60, stall_s=60)
    params = SamplingParams(max_tokens=1, grammar=Grammar.json())
    plain = Request(request_id="plain", prompt_ids=(1,), params=SamplingParams(max_tokens=1), seed=0)
    loop.post([Submit(plain), Submit(Request(request_id="g", prompt_ids=(1,), params=params, seed=0))])
    assert prepared == [threading.current_thread().name] and not engine.log
    loop.close()
    loop.run()
    assert engine.log[:2] == ["submit plain", "submit g"]
