"""EAGLE-3 heads in the engine: what they draft is what the plain network says, and no token changes with it.

The keys and values of the draft layer live under the base model's block tables; these tests run them through batching,
chunked prefill, preemption, copies of accepted rows and the prefix cache.
"""

import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from medusa_dist.engine.engine import Engine
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store, open_store
from medusa_dist.engine.state.sequence import Sequence
from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.heads.description import BaseModelFacts
from medusa_dist.medusa.published.reader import read_any_heads
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K
from medusa_dist.outputs import Output
from medusa_dist.request import Request
from tests.support.equivalence import SITUATIONS, ids, same, speculated
from tests.support.tiny_eagle3 import LAYER, OFFICIAL, plain_network, save_as, save_checkpoint
from tests.support.tiny_engine import VOCAB, Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [3, 41, 17, 1, 29, 58, 9, 33]
KINDS: dict[str, dict] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.8}, "rows": {"top_k": 5}}
TAPPED = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]}}


def requests(kind: str, max_tokens: int = 16) -> list[Request]:
    rng = random.Random(1)
    return [
        request(
            f"r{i}",
            [rng.randrange(VOCAB) for _ in range(length)],
            seed=rng.getrandbits(60),
            max_tokens=max_tokens,
            ignore_eos=True,
            **KINDS[kind],
        )
        for i, length in enumerate(LENGTHS)
    ]


class Served:
    """A tiny base, its heads, and an engine with them."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        self.model = model
        config = tiny_config(folder, heads={"source": str(folder / "eagle"), "allow_untrained": True})
        self.rank = EngineRank(config, folder)
        width = model.config.hidden_size
        facts = BaseModelFacts(name="tiny", fingerprint=None, hidden_size=width, vocab_size=VOCAB)
        file = read_any_heads(folder / "eagle", facts)
        assert isinstance(file, Eagle3File)
        self.file = file
        self._references: dict[str, Run] = {}

    def reference(self, kind: str) -> Run:
        """Without speculation."""
        if kind not in self._references:
            self._references[kind] = decode(engine_over(self.rank, Setting()), requests(kind))
        return self._references[kind]

    def tapped(self, tokens: list[int]) -> Tensor:
        """[len(tokens), T W]: outputs of the tapped layers, by transformers."""
        with torch.inference_mode():
            states = self.model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states
        layers = self.file.aux_layers(self.model.config.num_hidden_layers)
        return torch.cat([states[1 + layer][0] for layer in layers], dim=-1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Served:
    folder = tmp_path_factory.mktemp("eagle3")
    torch.manual_seed(0)
    save_model("llama", folder)
    model = _with_more_layers(folder, 3)
    width = model.config.hidden_size
    save_checkpoint(folder / "eagle", "specforge", hidden_size=width, **TAPPED)
    return Served(folder, model)


def _with_more_layers(folder: Path, num_layers: int) -> PreTrainedModel:
    """The tiny model again with more layers, so that the tapped ones are before the last, whose output transformers
    reports after the final norm."""
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.num_hidden_layers = num_layers
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.save_pretrained(folder)
    return model


class Checker:
    """Compares what every sequence was drafted, after each step, with the plain network over all its tokens."""

    def __init__(self, served: Served, zero_at: dict[str, int] | None = None) -> None:
        """zero_at: KV index of the first row after a hit in the prefix cache, whose state is not known."""
        self.served, self.zero_at = served, zero_at or {}
        self.checked = 0

    def __call__(self, engine: Engine) -> None:
        for sequence in engine.scheduler.running:
            if "heads" in sequence.candidates:
                self._check(sequence)

    def _check(self, sequence: Sequence) -> None:
        tokens, candidates, file = list(sequence.tokens), sequence.candidates["heads"], self.served.file
        assert candidates.follows is not None and file.draft_vocab is not None
        if len(tokens) < 2 or sequence.request.params.temperature > 0:
            return
        tapped = self.served.tapped(tokens)[:-1]
        if sequence.request.request_id in self.zero_at:
            tapped[self.zero_at[sequence.request.request_id] - 1] = 0
        columns = {int(token): column for column, token in enumerate(file.draft_vocab)}
        place, path = 0, []
        while place >= 0:  # along the best guesses
            logits = plain_network(file, tokens, tapped, path)
            confidences, best = logits.softmax(-1).topk(min(DRAFT_TOP_K, len(logits)))
            torch.testing.assert_close(
                torch.from_numpy(candidates.confidences[place].copy()), confidences, atol=1e-4, rtol=1e-3
            )
            assert candidates.tokens[place].tolist() == file.draft_vocab[best].tolist()
            path.append(columns[int(candidates.tokens[place][0])])
            place = int(candidates.follows[place][0])
        self.checked += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_speculation_with_eagle3_heads_changes_no_token(served: Served, situation: str, kind: str) -> None:
    setting, arrivals = SITUATIONS[situation]
    setting = Setting(**(vars(setting) | {"nodes": 15}))
    run = decode(engine_over(served.rank, setting), requests(kind), arrivals=arrivals)
    same(run, served.reference(kind))
    speculated(run)
    assert (run.num_preemptions > 0) == (situation == "tiny pool")


@pytest.mark.parametrize("situation", ["joins and leaves", "chunked prefill"])
@pytest.mark.parametrize("nodes", [3, 15])
def test_candidates_are_those_of_the_plain_network_over_the_whole_text(
    served: Served, situation: str, nodes: int
) -> None:
    setting, arrivals = SITUATIONS[situation]
    setting = Setting(**(vars(setting) | {"nodes": nodes}))
    checker = Checker(served)
    run = decode(engine_over(served.rank, setting), requests("greedy"), arrivals=arrivals, after_step=checker)
    assert run.accepted > 0 and checker.checked > 80


def test_after_a_prefix_hit_one_state_is_taken_as_zero_and_the_rest_is_right(served: Served) -> None:
    """Two requests with one prompt of 41 tokens: the second finds two blocks of 16 in the cache, drafts' keys too."""
    prompt = requests("greedy")[1].prompt_ids
    engine = engine_over(served.rank, Setting(nodes=7))
    first, second = (request(name, prompt, max_tokens=12, temperature=0.0, ignore_eos=True) for name in ("a", "b"))
    decode(engine, [first])
    checker = Checker(served, {"b": 32})
    run = decode(engine, [second], after_step=checker)
    assert run.outputs["b"].num_cached_tokens == 32 and checker.checked >= 6


def test_beams_are_not_drafted_for_and_change_nothing(served: Served) -> None:
    """They are decoded beside a request that is drafted for."""
    prompt = requests("greedy")[2].prompt_ids
    each = [
        request("beams", prompt, temperature=0.0, beam_width=3, max_tokens=8, ignore_eos=True),
        request("x", prompt, temperature=0.0, max_tokens=16, ignore_eos=True),
    ]
    on, off = (outputs_of(engine_over(served.rank, Setting(nodes=nodes)), each) for nodes in (7, 0))
    assert on["x"].stats.num_drafted > 0 and on["beams"].stats.num_drafted == 0
    assert on["x"].token_ids == off["x"].token_ids and len(on["x"].token_ids) == 16
    assert on["beams"].hypotheses == off["beams"].hypotheses and len(on["beams"].hypotheses) == 3


def outputs_of(engine: Engine, each: list[Request]) -> dict[str, Output]:
    """Like decode, for beams too."""
    found: dict[str, Output] = {}
    for one in each:
        engine.submit(one)
    while engine.has_work:
        for output in engine.step():
            before = found.get(output.request_id)
            found[output.request_id] = output if before is None else before.merged(output)
    return found


@pytest.mark.parametrize("nodes", [3, None])
def test_small_and_static_trees_change_no_token(served: Served, nodes: int | None) -> None:
    run = decode(engine_over(served.rank, Setting(nodes=nodes)), requests("sampled"), arrivals=[0, 0, 2, 3, 3, 7, 8, 9])
    same(run, served.reference("sampled"))
    speculated(run)


# --- heads that are right ---


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Served:
    """A base whose attention adds nothing, so that a token's successors depend on it alone, and heads that know them.

    The draft layer sees one token (window 1). Its values are that token's embedding, one-hot; its MLP and the tapped
    states add nothing; the lm_head is the table of the base's logits.
    """
    folder = tmp_path_factory.mktemp("knowing")
    model = save_model("llama", folder)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    model.save_pretrained(folder)
    with torch.inference_mode():
        table = model(torch.arange(VOCAB)[:, None], use_cache=False).logits[:, 0]
    width = 32  # of the heads; a one-hot row of it, normalised, is sqrt(32)
    layer = LAYER | {"hidden_size": width, "num_key_value_heads": 4, "head_dim": 8, "rms_norm_eps": 1e-12}
    config = OFFICIAL | layer | TAPPED | {"use_sliding_window": True, "sliding_window": 1}
    config |= {"target_hidden_size": model.config.hidden_size, "draft_vocab_size": VOCAB}
    eye, inner = torch.eye(width), config["intermediate_size"]
    tensors = {
        "fc.weight": torch.zeros(width, 2 * model.config.hidden_size),
        "midlayer.hidden_norm.weight": torch.ones(width),
        "midlayer.input_layernorm.weight": torch.ones(width),
        "midlayer.post_attention_layernorm.weight": torch.ones(width),
        "midlayer.self_attn.q_proj.weight": torch.zeros(width, 2 * width),
        "midlayer.self_attn.k_proj.weight": torch.zeros(width, 2 * width),
        "midlayer.self_attn.v_proj.weight": torch.cat([eye, torch.zeros(width, width)], dim=1),
        "midlayer.self_attn.o_proj.weight": eye.clone(),
        "midlayer.mlp.gate_proj.weight": torch.zeros(inner, width),
        "midlayer.mlp.up_proj.weight": torch.zeros(inner, width),
        "midlayer.mlp.down_proj.weight": torch.zeros(width, inner),
        "norm.weight": torch.ones(width),
        "embed_tokens.weight": eye[:VOCAB].clone(),
        "lm_head.weight": torch.cat([table.T, torch.zeros(VOCAB, width - VOCAB)], dim=1) / width**0.5,
    }
    save_as(folder / "eagle", config, tensors)
    return Served(folder, model)


def _rank(rank: int, folder: Path, port: int) -> None:
    """One of two ranks, in bfloat16; rank 0 decodes and writes what came out."""
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 2, 60)
    heads = {"source": str(folder / "eagle"), "allow_untrained": True}
    config = tiny_config(folder, heads=heads, tensor_parallel_size=2, dtype="bfloat16")
    made = EngineRank(config, folder, rank, store, 0)
    if rank:
        made.follow()
    else:
        runs = [decode(engine_over(made, Setting(nodes=nodes)), requests("sampled")) for nodes in (15, 0)]
        made.engine.stop()
        torch.save([(ids(run), run.accepted, run.num_steps) for run in runs], folder / "outputs.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_in_bfloat16_draft_on_rank_0_alone_and_change_no_token(knowing: Served) -> None:
    folder = Path(knowing.rank.config.model)
    store = open_store(2, "127.0.0.1", 60)
    mp.spawn(_rank, (folder, store.port), nprocs=2)
    (on, accepted, steps), (off, _, plain_steps) = torch.load(folder / "outputs.pt")
    assert on == off
    assert accepted > len(LENGTHS) and steps < plain_steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_drafts_of_heads_that_know_the_model_are_accepted(knowing: Served, situation: str, kind: str) -> None:
    setting, arrivals = SITUATIONS[situation]
    setting = Setting(**(vars(setting) | {"nodes": 15}))
    run = decode(engine_over(knowing.rank, setting), requests(kind), arrivals=arrivals)
    same(run, knowing.reference(kind))
    steps = sum(output.stats.num_steps for output in run.outputs.values())
    emitted = sum(len(output.token_ids) for output in run.outputs.values())
    # In the other situations there is room for few drafts.
    assert emitted >= (2 if situation == "joins and leaves" and kind != "rows" else 1.1) * steps
