"""Beam search through the whole engine: transformers' own result, whatever is drafted, shared, preempted or split."""

import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import PreTrainedModel

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store, open_store
from medusa_dist.outputs import FinishReason, Hypothesis, Output
from medusa_dist.request import Request
from tests.support.beam_oracle import BeamOracle, Trace, search, traced
from tests.support.fresh_pass import fresh_rows
from tests.support.tiny_engine import EOS, VOCAB, Setting, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["llama", "gemma2", "gpt2"]
MORE = ["opt", "gpt-neox", "mixtral"]
MAY_NOT_STOP = ["gpt2", "opt"]  # the random weights of some versions of transformers never choose to
ALL = [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
# width, length_penalty, early_stopping, and what else a request may ask.
KINDS: list[tuple[int, float, bool | str, dict]] = [
    (2, 1.0, False, {}),
    (3, 0.0, "never", {}),
    (4, 2.0, True, {"ignore_eos": True}),
    (5, -0.5, "never", {"min_tokens": 5}),
    (4, 1.0, True, {"repetition_penalty": 1.3}),
    (3, 1.5, "never", {"stop_token_ids": (5, 11)}),
    (2, 0.6, False, {"logit_bias": ((3, 1.5), (7, -4.0)), "stop_token_ids": (4,)}),
    (6, 1.0, False, {"ignore_eos": True}),
]


def requests(count: int = 8, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    made = []
    for i in range(count):
        width, penalty, early, more = KINDS[i % len(KINDS)]
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 15, 16, 17, 33, 50]))]
        fields = {"beam_width": width, "length_penalty": penalty, "early_stopping": early} | more
        made.append(request(f"b{i}", prompt, seed=i, max_tokens=rng.randrange(5, 20), **fields))
    return made


def of_transformers(model: PreTrainedModel, one: Request) -> list[tuple[tuple[int, ...], float]]:
    params, prompt = one.params, torch.tensor([one.prompt_ids])
    ends = ([] if params.ignore_eos else [EOS]) + list(params.stop_token_ids)
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        num_beams=params.beam_width,
        num_return_sequences=params.beam_width,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        repetition_penalty=params.repetition_penalty,
        sequence_bias={(i,): bias for i, bias in params.logit_bias} or None,
        eos_token_id=ends or [VOCAB],  # None would be read from the model; no token has the id VOCAB
        pad_token_id=-7,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = made.sequences[:, len(one.prompt_ids) :].tolist()
    return [
        (tuple(t for t in row if t != -7), score)
        for row, score in zip(rows, made.sequences_scores.tolist(), strict=True)
    ]


class Model:
    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.original = save_model(name, folder)
        self.rank = EngineRank(tiny_config(folder, max_running=24), folder)
        self.results: dict[tuple[int, int], tuple[dict[str, Output], dict[str, Trace]]] = {}

    def engine(self, **setting: object) -> Engine:
        return engine_over(self.rank, Setting(**{"max_running": 24} | setting))

    def plain(self, count: int = 8, seed: int = 0) -> tuple[dict[str, Output], dict[str, Trace]]:
        """Each request alone and without speculation, and its trace."""
        if (count, seed) not in self.results:
            outputs, traces = {}, {}
            for one in requests(count, seed):
                with traced() as trace:
                    outputs |= search(self.engine(), [one])
                traces[one.request_id] = trace
            self.results[count, seed] = outputs, traces
        return self.results[count, seed]

    def oracle(self, skill: float = 0.9, **setting: object) -> Engine:
        made = self.engine(**{"nodes": 40, "max_batched_tokens": 400} | setting)
        made.drafters = {"heads": BeamOracle(self.plain()[1], skill)}
        return made


class Models:
    """Made when a test asks for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, Model] = {}

    def __getitem__(self, name: str) -> Model:
        if name not in self.made:
            self.made[name] = Model(name, self.root / name)
        return self.made[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def found(outputs: dict[str, Output]) -> dict[str, tuple[Hypothesis, ...]]:
    """Tokens, order, reasons and every bit of the scores."""
    return {name: outputs[name].hypotheses for name in sorted(outputs)}


def ids(outputs: dict[str, Output]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [h.token_ids for h in outputs[name].hypotheses] for name in sorted(outputs)}


@pytest.mark.parametrize("name", ALL)
def test_beam_search_equals_transformers(models: Models, name: str) -> None:
    model = models[name]
    ends = set()
    for one in requests():
        output = model.plain()[0][one.request_id]
        theirs = of_transformers(model.original, one)
        assert [h.token_ids for h in output.hypotheses] == [ids for ids, _ in theirs], one.params
        assert [h.score for h in output.hypotheses] == pytest.approx([score for _, score in theirs], rel=1e-5, abs=1e-5)
        assert (output.token_ids, output.finish_reason) == (theirs[0][0], output.hypotheses[0].finish_reason)
        ends |= {h.finish_reason for h in output.hypotheses}
    assert FinishReason.LENGTH in ends and (FinishReason.STOP in ends or name in MAY_NOT_STOP)


@pytest.mark.parametrize("name", ALL)
def test_drafts_change_no_hypothesis_and_save_steps(models: Models, name: str) -> None:
    model = models[name]
    for engine in (model.oracle(), model.oracle(skill=0.6), model.engine(nodes=15), model.engine(nodes=None)):
        outputs = search(engine, requests())
        if name == "mixtral":  # experts see other rows beside theirs, which moves the last bits of a score
            assert ids(outputs) == ids(model.plain()[0])
        else:
            assert found(outputs) == found(model.plain()[0])
        assert all(len(output.heads) == len(output.token_ids) for output in outputs.values())
    stats = [output.stats for output in search(model.oracle(skill=1.0), requests()).values()]
    assert sum(s.num_steps for s in stats) < 0.7 * sum(o.stats.num_steps for o in model.plain()[0].values())
    assert all(s.num_accepted <= s.num_drafted for s in stats)


SETTINGS: dict[str, dict] = {
    "together": {},
    "few seats": {"max_running": 7},
    "chunks": {"max_batched_tokens": 24},
    "tiny pool": {"num_blocks": 19},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_few_seats_chunks_and_preemption_change_no_hypothesis(models: Models, setting: str) -> None:
    model = models["llama"]
    for engine in (model.engine(**SETTINGS[setting]), model.oracle(**SETTINGS[setting])):
        assert found(search(engine, requests())) == found(model.plain()[0])
        assert (engine.scheduler.num_preemptions > 0) == (setting == "tiny pool")


def sampled(count: int = 5) -> list[Request]:
    rng = random.Random(7)
    kinds: list[dict] = [{"temperature": 0.8}, {"temperature": 0.0, "logprobs": 2}, {"top_p": 0.8, "logprobs": 0}]
    return [
        request(f"s{i}", [rng.randrange(VOCAB) for _ in range(9 * i + 4)], seed=i, max_tokens=25, **kinds[i % 3])
        for i in range(count)
    ]


@pytest.mark.parametrize("blocks", [128, 19])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_beams_and_sampled_requests_do_not_change_each_other(models: Models, name: str, blocks: int) -> None:
    model = models[name]
    alone = {}
    for one in sampled():
        alone |= search(model.engine(), [one])
    mixed = [one for pair in zip(sampled(), requests(5), strict=True) for one in pair]
    engine = model.oracle(num_blocks=blocks)
    outputs = search(engine, mixed)
    assert found({n: o for n, o in outputs.items() if n[0] == "b"}) == {
        n: h for n, h in found(model.plain()[0]).items() if n in outputs
    }
    for name_, output in alone.items():
        assert (outputs[name_].token_ids, outputs[name_].logprobs) == (output.token_ids, output.logprobs)
        assert not output.hypotheses
    assert (engine.scheduler.num_preemptions > 0) == (blocks == 19)


def check_kv(engine: Engine) -> None:
    """KV of every beam, as it will be once pending moves are made, against a fresh pass over its tokens."""
    worker = engine.ranks.worker
    for sequence in engine.scheduler.running:
        count = sequence.num_computed_tokens
        seen = fresh_rows(worker, sequence.tokens[:count])
        moved = {target: source for source, target in sequence.pending_copies}
        own = range(count - len(sequence.fork_slots))
        slots = [sequence.slot_at(moved.get(column, column)) for column in own] + sequence.fork_slots
        for layer, wanted in enumerate(seen):
            for got, expected in zip(worker.pool.read(layer, torch.tensor(slots)), wanted, strict=True):
                assert torch.allclose(got, expected, atol=1e-5), sequence.request.request_id


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_kv_of_every_beam_equals_a_fresh_pass_over_its_tokens(models: Models, name: str) -> None:
    model = models[name]
    engine = model.oracle(num_blocks=24)
    several: list[int] = []

    def after_step(engine: Engine) -> None:
        check_kv(engine)
        owned = [block for sequence in engine.scheduler.running for block in sequence.block_table]
        several.append(len(owned) - len(set(owned)))

    assert found(search(engine, requests(5), after_step)) == {
        n: h for n, h in found(model.plain()[0]).items() if n < "b5"
    }
    assert max(several) >= 3, "blocks are shared"


def test_prompt_of_a_search_is_found_in_the_prefix_cache(models: Models) -> None:
    model = models["llama"]
    one = next(r for r in requests() if len(r.prompt_ids) > 32)
    engine = model.oracle()
    first = search(engine, [one])[one.request_id]
    second = search(engine, [one])[one.request_id]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 16 * ((len(one.prompt_ids) - 1) // 16))
    assert first.hypotheses == second.hypotheses == model.plain()[0][one.request_id].hypotheses


def test_abort_at_any_step_frees_all_blocks(models: Models) -> None:
    model = models["llama"]
    one = requests()[2]
    for num_steps in range(12):
        engine = model.oracle(max_batched_tokens=48)
        engine.submit(one)
        for _ in range(num_steps):
            engine.step()
        assert engine.has_work
        engine.abort(one.request_id)
        engine.abort(one.request_id)
        engine.scheduler.check_integrity()
        pool = engine.scheduler.pool
        assert not engine.has_work and pool.num_free == pool.num_usable


def test_known_output_is_ignored_and_the_search_restarts(models: Models) -> None:
    """There is none before the end; whoever sends one gets the search from the prompt all the same."""
    model, one = models["llama"], requests()[0]
    outputs = search(model.engine(), [one], known={one.request_id: (3, 4, 5)})
    assert outputs[one.request_id].hypotheses == model.plain()[0][one.request_id].hypotheses


# --- two ranks ---


def _rank(rank: int, folder: Path, root: Path, port: int) -> None:
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 2, 60)
    made = EngineRank(tiny_config(folder, tensor_parallel_size=2, max_running=24), folder, rank, store, 0)
    if rank:
        made.follow()
    else:
        traces = torch.load(root / "traces.pt", weights_only=False)
        results = []
        for nodes, blocks in ((0, 128), (40, 12)):
            engine = engine_over(made, Setting(nodes=nodes, max_running=24, max_batched_tokens=400, num_blocks=blocks))
            if nodes:
                engine.drafters = {"heads": BeamOracle(traces, 0.9)}
            outputs = search(engine, requests()[:4])
            results.append(
                (ids(outputs), sum(o.stats.num_steps for o in outputs.values()), engine.scheduler.num_preemptions)
            )
        made.engine.stop()
        torch.save(results, root / "results.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # two processes that load torch
def test_beam_search_on_two_ranks_equals_one(models: Models, tmp_path: Path) -> None:
    outputs, traces = models["llama"].plain()
    torch.save(traces, tmp_path / "traces.pt")
    store = open_store(2, "127.0.0.1", 60)
    mp.spawn(_rank, (models["llama"].folder, tmp_path, store.port), nprocs=2)
    plain, drafted = torch.load(tmp_path / "results.pt", weights_only=False)
    assert plain[0] == drafted[0] == {n: h for n, h in ids(outputs).items() if n < "b4"}
    assert drafted[1] < plain[1]
