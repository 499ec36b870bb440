"""The promise: speculation, batching, memory and ranks change the speed, never a token.

One reference per model and way of sampling: each request alone, without speculation. Everything else must equal it.
"""

import itertools
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import PreTrainedModel

from medusa_dist.engine.runner import broadcast as ranks
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store, open_store
from medusa_dist.ops.cpu.packed_weights import int8_refusal
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from tests.support.equivalence import SITUATIONS, TREES, ids, same, speculated
from tests.support.fresh_pass import check_sequences
from tests.support.tiny_engine import EOS, VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["llama", "gemma2", "gpt2"]  # gemma2: softcap, windows of 4, scaled embeddings; gpt2: learned positions
NARROW: dict[str, dict[str, object]] = {"llama in bfloat16": {"dtype": "bfloat16"}}
if int8_refusal() is None:
    NARROW["llama in 8 bits"] = {"quantization": "int8"}
KINDS: dict[str, list[dict]] = {
    "greedy": [{"temperature": 0.0}],
    "sampled": [{"temperature": 0.8}],
    "whole rows": [
        {"top_p": 0.9, "bad_words": ((5,), (3, 8), (7, 7), (1, 2, 3))},
        {"top_k": 5, "temperature": 1.3},
        {"min_p": 0.05},
        {"presence_penalty": 0.8, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
        {"logit_bias": ((3, 2.0), (EOS, 1.5), (7, -100.0)), "ignore_eos": False, "min_tokens": 4},
        {"temperature": 0.0, "logprobs": 3, "repetition_penalty": 1.5, "prompt_logprobs": 3},
        {"logprobs": 2, "allowed_token_ids": (1, 4, 9, 12, 13, 20, 28)},
        {"temperature": 0.7},  # and one that needs no whole row, in the same batch
    ],
}
LENGTHS = [3, 41, 17, 1, 29, 58, 9, 33]
MAX_TOKENS = [25, 12, 30, 7, 18, 22, 1, 28]


def requests(kind: str) -> list[Request]:
    """Eight requests of different lengths."""
    rng = random.Random(1)
    made = []
    for i, params in zip(range(8), itertools.cycle(KINDS[kind]), strict=False):
        prompt = [rng.randrange(VOCAB) for _ in range(LENGTHS[i])]
        fields = {"max_tokens": MAX_TOKENS[i], "ignore_eos": True} | params
        made.append(request(f"r{i}", prompt, seed=rng.getrandbits(64) - 2**63, **fields))
    return made


class Model:
    """A tiny model with its engine, and the references made so far."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.original: PreTrainedModel = save_model(name.partition(" ")[0], folder)
        self.rank = EngineRank(tiny_config(folder, **NARROW.get(name, {})), folder)
        self._references: dict[str, Run] = {}

    def reference(self, kind: str) -> Run:
        if kind not in self._references:
            self._references[kind] = self.alone(requests(kind), Setting())
        return self._references[kind]

    def alone(self, each: list[Request], setting: Setting, truth: dict | None = None) -> Run:
        """One request after the other."""
        whole = Run()
        for one in each:
            part = decode(engine_over(self.rank, setting, truth), [one])
            whole.outputs |= part.outputs
            whole.logits |= part.logits
        return whole

    def truth(self, kind: str) -> dict[str, tuple[int, ...]]:
        return ids(self.reference(kind))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Model]:
    return {name: Model(name, tmp_path_factory.mktemp(name)) for name in (*NAMES, *NARROW)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize(("name", "tree"), [("llama", "3"), *itertools.product([*NAMES, *NARROW], ["15", "static"])])
def test_speculation_on_equals_off_in_every_situation(
    models: dict[str, Model], name: str, tree: str, situation: str, kind: str
) -> None:
    model = models[name]
    setting, arrivals = SITUATIONS[situation]
    setting = Setting(**(vars(setting) | TREES[tree] | {"skill": 0.6}))
    run = decode(engine_over(model.rank, setting, model.truth(kind)), requests(kind), arrivals=arrivals)
    same(run, model.reference(kind))
    speculated(run)
    assert (run.num_preemptions > 0) == (situation == "tiny pool")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*NAMES, *NARROW])
def test_drafts_of_real_heads_change_no_token(models: dict[str, Model], name: str, kind: str) -> None:
    """The heads' own guesses; dynamic and static trees; alone and together."""
    model, each = models[name], requests(kind)
    runs = [decode(engine_over(model.rank, Setting(nodes=nodes)), each) for nodes in (15, None)]
    runs.append(model.alone(each[:3], Setting(nodes=15)))
    for run in runs[:2]:
        same(run, model.reference(kind))
        speculated(run)
    assert all(model.truth(kind)[r] == tokens for r, tokens in ids(runs[2]).items())


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_without_drafts_does_not_depend_on_the_batch(models: dict[str, Model], kind: str) -> None:
    for setting, arrivals in SITUATIONS.values():
        run = decode(engine_over(models["llama"].rank, setting), requests(kind), arrivals=arrivals)
        same(run, models["llama"].reference(kind))
        assert run.drafted == 0


@pytest.mark.parametrize("name", [*NAMES, *NARROW])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_logits_are_bitwise_equal_alone_and_with_trees_in_a_batch(
    models: dict[str, Model], name: str, situation: str
) -> None:
    """Each token's row of logits: alone and among others, with trees, in chunks, after preemption."""
    model = models[name]
    setting, arrivals = SITUATIONS[situation]
    setting = Setting(**(vars(setting) | {"nodes": 15, "skill": 0.6}))
    run = decode(engine_over(model.rank, setting, model.truth("sampled")), requests("sampled"), arrivals=arrivals)
    reference = model.reference("sampled")
    assert run.logits.keys() == reference.logits.keys()
    differing = [where for where, row in run.logits.items() if not torch.equal(row, reference.logits[where])]
    assert not differing


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_growing_across_a_chunk_of_keys_changes_no_token(models: dict[str, Model], name: str) -> None:
    """A sequence that grows over column 256 with trees, beside a short one."""
    rng = random.Random(2)
    each = [
        request("long", [rng.randrange(VOCAB) for _ in range(244)], seed=5, max_tokens=30, ignore_eos=True),
        request("short", [4, 5], seed=6, max_tokens=30, ignore_eos=True),
    ]
    model = models[name]
    reference = model.alone(each, Setting())
    run = decode(engine_over(model.rank, Setting(nodes=15, skill=0.7), ids(reference)), each)
    same(run, reference)
    speculated(run)
    assert all(torch.equal(row, reference.logits[where]) for where, row in run.logits.items())


@pytest.mark.parametrize("name", NAMES)
def test_kv_equals_a_fresh_pass_over_the_tokens(models: dict[str, Model], name: str) -> None:
    model = models[name]
    setting = Setting(nodes=15, skill=0.7, num_blocks=7)
    each = requests("sampled")[:5]
    run = decode(engine_over(model.rank, setting, model.truth("sampled")), each, after_step=check_sequences)
    speculated(run)
    assert run.num_preemptions > 0


@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_equals_transformers(models: dict[str, Model], name: str) -> None:
    model = models[name]
    for one in requests("greedy"):
        prompt = torch.tensor([one.prompt_ids])
        made = model.original.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=one.params.max_tokens,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert tuple(made[0, len(one.prompt_ids) :].tolist()) == model.truth("greedy")[one.request_id]


@pytest.mark.parametrize("by", ["stop token", "end of sequence"])
def test_end_token_inside_accepted_drafts_ends_the_output(models: dict[str, Model], by: str) -> None:
    """An oracle drafts past the end; nothing behind it comes out."""
    model = models["llama"]
    prompt = requests("sampled")[0].prompt_ids
    free = request("x", prompt, seed=9, max_tokens=30, ignore_eos=True)
    truth = ids(model.alone([free], Setting()))
    positions = [i for i, token in enumerate(truth["x"]) if token not in truth["x"][:i] and 4 < i < 25]
    inside = 0
    for end in positions[:6]:
        token = truth["x"][end]
        fields = {"stop_token_ids": (token,), "ignore_eos": True} if by == "stop token" else {"min_tokens": 1}
        one = request("x", prompt, seed=9, max_tokens=30, **fields)
        engine = engine_over(model.rank, Setting(nodes=15, skill=1.0), truth)
        if by == "end of sequence":
            limits = engine.scheduler.limits
            engine.scheduler.limits = type(limits)(**(vars(limits) | {"eos_ids": (token,)}))
            one = request("x", prompt, seed=9, max_tokens=30)
        output = decode(engine, [one]).outputs["x"]
        assert output.token_ids == truth["x"][: end + 1]
        assert output.finish_reason is FinishReason.STOP
        inside += output.heads[-1] > 0  # it was a drafted token, and more was drafted behind it
    assert inside >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_request_continues_with_the_same_tokens(models: dict[str, Model], kind: str) -> None:
    """What a restarted group gets: the request and the output so far."""
    model = models["llama"]
    reference = model.reference(kind)
    for share in (0.0, 0.4, 0.9):
        known = {name: tokens[: int(share * len(tokens))] for name, tokens in ids(reference).items()}
        run = decode(engine_over(model.rank, Setting(nodes=15, skill=0.6), ids(reference)), requests(kind), known=known)
        for name, output in run.outputs.items():
            expected = reference.outputs[name]
            assert known[name] + output.token_ids == expected.token_ids
            assert output.finish_reason == expected.finish_reason
            assert output.logprobs == expected.logprobs[len(known[name]) :]


def test_request_with_speculation_off_is_never_drafted(models: dict[str, Model]) -> None:
    model = models["llama"]
    each = requests("sampled")
    plain = [
        request(r.request_id, r.prompt_ids, r.seed, temperature=0.8, max_tokens=12, ignore_eos=True, speculation=False)
        for r in each[:3]
    ]
    run = decode(engine_over(model.rank, Setting(nodes=15)), plain + each[3:])
    for r in plain:
        output = run.outputs[r.request_id]
        assert output.stats.num_drafted == 0 and output.token_ids == model.truth("sampled")[r.request_id][:12]
    assert run.drafted > 0


# --- two ranks ---

# What the pair decodes: model, way of sampling, the most nodes (None = static tree), blocks in the pool.
TASKS = [
    ("llama", "greedy", 15, 8),
    ("llama", "sampled", None, 128),
    ("llama", "whole rows", 15, 8),
    ("gemma2", "sampled", 0, 128),
    ("gemma2", "whole rows", 15, 8),
]


def _rank(rank: int, folders: dict[str, Path], root: Path, port: int) -> None:
    """One of two ranks; rank 0 works through the tasks, and once with its own heads."""
    torch.set_num_threads(1)
    ranks.MESSAGE_WORDS = 64  # so that plans take two messages
    store = join_store("127.0.0.1", port, 2, 60)
    truth = torch.load(root / "truth.pt")
    outputs = {}
    for generation, (name, folder) in enumerate(folders.items()):
        made = EngineRank(tiny_config(folder, tensor_parallel_size=2), folder, rank, store, generation)
        if rank:
            made.follow()
        else:
            for task in [task for task in TASKS if task[0] == name]:
                _, kind, nodes, blocks = task
                setting = Setting(nodes=nodes, skill=0.6 if nodes != 0 else None, num_blocks=blocks)
                outputs[task] = _decode(made, setting, truth[name][kind], kind)
            if name == "llama":
                outputs[name, "sampled", 15, 0] = _decode(made, Setting(nodes=15), None, "sampled")
            made.engine.heartbeat()
            made.engine.stop()
        dist.destroy_process_group()
    if rank == 0:
        torch.save(outputs, root / "outputs.pt")


def _decode(made: EngineRank, setting: Setting, truth: dict | None, kind: str) -> tuple[dict, int, int, int, list]:
    run = decode(engine_over(made, setting, truth), requests(kind)[:6], arrivals=[0, 0, 1, 2, 2, 5])
    return ids(run), run.accepted, run.drafted, run.num_preemptions, prompt_logprobs(run)


def prompt_logprobs(run: Run) -> list[float]:
    """Of all prompts that were scored, one after the other."""
    entries = [entry for name in sorted(run.outputs) for entry in run.outputs[name].prompt_logprobs]
    return [number for entry in entries if entry for number in (entry.logprob, *entry.top_logprobs)]


def test_two_ranks_give_the_tokens_of_one(models: dict[str, Model], tmp_path: Path) -> None:
    truth = {name: {kind: models[name].truth(kind) for kind in KINDS} for name in ("llama", "gemma2")}
    torch.save(truth, tmp_path / "truth.pt")
    store = open_store(2, "127.0.0.1", 60)
    mp.spawn(_rank, ({name: models[name].folder for name in truth}, tmp_path, store.port), nprocs=2)
    outputs = torch.load(tmp_path / "outputs.pt")
    assert len(outputs) == len(TASKS) + 1
    for (name, kind, nodes, blocks), (tokens, accepted, drafted, preemptions, scores) in outputs.items():
        assert tokens == {request: truth[name][kind][request] for request in tokens}, (name, kind, nodes)
        assert len(tokens) == 6
        assert (accepted == drafted == 0) if nodes == 0 else (0 < accepted < drafted)
        assert (preemptions > 0) == (blocks == 8)
        assert scores == pytest.approx(prompt_logprobs(models[name].reference(kind)), abs=1e-4)
        assert bool(scores) == (kind == "whole rows")
