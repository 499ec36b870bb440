"""Grammars over two ranks: the tokens are those of one rank, whatever is drafted, and every finished text fits.

Matchers live where the choice is made, on the first rank; followers never hear of them, only of rows.
"""

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.process_group import join_store, open_store
from medusa_dist.outputs import FinishReason
from medusa_dist.request import Request
from tests.support.structured_cases import GRAMMARS, TOKENIZER, text_of
from tests.support.tiny_engine import Run, Setting, decode, engine_over, request, save_model, tiny_config

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]  # two processes that load torch
SCHEMA, REGEX = 0, 3  # places in GRAMMARS
WAYS: list[dict] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 2},
]
SETTINGS = {
    "off": Setting(),
    "heads": Setting(nodes=15),
    "static heads": Setting(nodes=None),
    "mostly right": Setting(nodes=15, skill=0.6),
    "a tiny pool": Setting(nodes=15, skill=0.6, num_blocks=9),
}


def requests() -> list[Request]:
    """A JSON schema and a regex in each way of sampling, and two texts that nothing binds, side by side."""
    cells = [(kind, way) for kind in (SCHEMA, REGEX) for way in WAYS] + [(None, WAYS[0]), (None, WAYS[1])]
    return [
        request(
            f"r{i}", range(3, 6 + i), seed=i, max_tokens=40, grammar=None if kind is None else GRAMMARS[kind][0], **way
        )
        for i, (kind, way) in enumerate(cells)
    ]


def facts(run: Run) -> dict[str, tuple]:
    return {name: (o.token_ids, o.finish_reason, o.is_complete) for name, o in sorted(run.outputs.items())}


def decode_all(rank: EngineRank) -> dict[str, dict]:
    """By setting: what came out, and how many drafts there were and were accepted."""
    found, truth = {}, None
    for name, setting in SETTINGS.items():
        run = decode(engine_over(rank, setting, truth), requests())
        truth = truth or {one: output.token_ids for one, output in run.outputs.items()}
        counts = {"drafted": run.drafted, "accepted": run.accepted, "preempted": run.num_preemptions}
        found[name] = {"facts": facts(run), "outputs": run.outputs, **counts}
    return found


def _rank(rank: int, folder: Path, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 2, 60)
    made = EngineRank(tiny_config(folder, tensor_parallel_size=2), folder, rank, store, 0)
    if rank:
        made.follow()
    else:
        torch.save(decode_all(made), out)
        made.engine.stop()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[int, dict]:
    """By number of ranks."""
    folder = tmp_path_factory.mktemp("model")
    save_model("llama", folder)
    TOKENIZER.save_pretrained(folder)
    store = open_store(2, "127.0.0.1", 60)
    mp.spawn(_rank, (folder, store.port, folder / "two.pt"), nprocs=2)
    return {
        1: decode_all(EngineRank(tiny_config(folder), folder)),
        2: torch.load(folder / "two.pt", weights_only=False),
    }


def test_two_ranks_with_any_drafts_give_the_tokens_of_one_without(found: dict[int, dict]) -> None:
    plain = found[1]["off"]["facts"]
    assert len(plain) == len(requests())
    for ranks, setting in itertools.product(found, SETTINGS):
        assert found[ranks][setting]["facts"] == plain, (ranks, setting)


def test_drafts_are_verified_and_accepted_on_two_ranks(found: dict[int, dict]) -> None:
    counts = found[2]
    assert counts["off"]["drafted"] == 0
    for setting in ("heads", "static heads", "mostly right", "a tiny pool"):
        assert counts[setting]["drafted"] > 0
    assert counts["mostly right"]["accepted"] > 20 and counts["a tiny pool"]["accepted"] > 20
    assert counts["a tiny pool"]["preempted"] > 0 == counts["mostly right"]["preempted"]


def test_finished_texts_of_two_ranks_fit_their_grammars(found: dict[int, dict]) -> None:
    ended = {SCHEMA: 0, REGEX: 0}
    for i, kind in enumerate((SCHEMA,) * len(WAYS) + (REGEX,) * len(WAYS)):
        output = found[2]["mostly right"]["outputs"][f"r{i}"]
        if output.finish_reason is FinishReason.STOP:
            assert GRAMMARS[kind][1](text_of(output)), text_of(output)
            ended[kind] += 1
            if kind == SCHEMA:
                assert set(json.loads(text_of(output))) == {"ab", "n"}
    assert min(ended.values()) >= 2, ended
