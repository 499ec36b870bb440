"""The start-up self-check, over a model that counts: heads that count with it, heads that do not, and no places."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer, models, pre_tokenizers

from medusa_dist.engine.startup import bootstrap as start
from medusa_dist.engine.startup.bootstrap import EngineRank
from medusa_dist.engine.startup.head_check import MAX_TOKENS, MIN_PLACES, HeadsCheck, check_heads, text_ids
from medusa_dist.errors import GroupError, HeadsError
from tests.support.counting_model import VOCAB, save_counting_model, save_heads, shifted
from tests.support.tiny_engine import tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")
COUNTED = [i % VOCAB for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("counting")
    save_counting_model(made, shifted(1))
    return made


def build(folder: Path, skill: int, **heads: object) -> EngineRank:
    """An engine whose head k guesses k + skill tokens on; right for skill 1."""
    save_heads(folder / "heads", [shifted(k + skill) for k in (1, 2, 3)])
    return EngineRank(tiny_config(folder, heads={"source": str(folder / "heads"), **heads}), folder)


@pytest.mark.parametrize("form", ["hidden", "hidden+embedding"])
def test_right_heads_hit_every_position(folder: Path, form: str) -> None:
    # A head that sees the token just emitted stands one place further than one that sees the hidden state alone.
    save_heads(folder / "heads", [shifted(k + (form == "hidden")) for k in (1, 2, 3)], form)
    rank = EngineRank(tiny_config(folder), folder)
    assert check_heads(rank.engine.ranks, rank.engine.drafters["heads"], COUNTED, 64) == HeadsCheck(39, 39, 2)


def test_check_in_many_small_passes_equals_one_pass(folder: Path) -> None:
    rank = build(folder, 1)
    broken = [*COUNTED[:20], 5, *COUNTED[20:]]
    once = check_heads(rank.engine.ranks, rank.engine.drafters["heads"], broken, 64)
    # 40 steps of 41 ids; the model would not go on with the odd 5, nor from 5 to 20.
    assert once == HeadsCheck(38, 38, 2)
    assert check_heads(rank.engine.ranks, rank.engine.drafters["heads"], broken, 7) == once


def test_only_positions_where_the_model_continues_the_text_count(folder: Path) -> None:
    rank = build(folder, 1)
    few = [*COUNTED[:MIN_PLACES], *[3] * 30]
    found = check_heads(rank.engine.ranks, rank.engine.drafters["heads"], few, 64)
    assert found.places == MIN_PLACES - 1 and not found.is_judged
    found.refuse_chance()
    assert "continues like the self-check's text at only 15 positions" in str(found)


def test_heads_that_are_no_better_than_chance_do_not_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "text_ids", lambda _: COUNTED)
    assert build(folder, 1).facts["heads_check"] == (
        "head 1 is right at 39 of 39 positions of the self-check's text (chance: 2)"
    )
    with pytest.raises(HeadsError, match=r"no better than chance: head 1 is right at 0 of 39 .*allow_untrained: true"):
        build(folder, 2)
    assert build(folder, 2, allow_untrained=True).facts["heads_check"] is None


def test_chance_is_how_often_the_commonest_token_comes() -> None:
    HeadsCheck(hits=8, places=60, commonest=7).refuse_chance()
    with pytest.raises(HeadsError):
        HeadsCheck(hits=7, places=60, commonest=7).refuse_chance()


def test_head_that_always_guesses_the_same_is_refused_as_chance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always = torch.zeros_like(shifted(1))
    always[4] = 1.0
    save_heads(folder / "heads", [always.clone() for _ in range(3)])
    monkeypatch.setattr(start, "text_ids", lambda _: [*COUNTED[:31], *COUNTED[:31]])
    with pytest.raises(HeadsError, match=r"right at 2 of 61 positions .*chance: 2"):
        EngineRank(tiny_config(folder), folder)


def test_self_check_text_is_encoded_by_the_models_tokenizer(tmp_path: Path) -> None:
    assert text_ids(tmp_path) == []
    words = Tokenizer(models.WordLevel({"function": 3, "the": 5, "?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    ids = text_ids(tmp_path)
    assert len(ids) <= MAX_TOKENS and {3, 5} <= set(ids) and ids[15] == 3


def _one_of_two(rank: int, folder: Path, port: int) -> None:
    """Heads that count are let in, heads that do not are refused by rank 0, and rank 1 does not wait for ever."""
    torch.set_num_threads(1)
    start.text_ids = lambda _: COUNTED
    store = start.join_store("127.0.0.1", port, 2, 60)
    config = tiny_config(folder, tensor_parallel_size=2, heads={"source": str(folder / "right")})
    made = EngineRank(config, folder, rank, store, 0)
    if rank:
        made.follow()
    else:
        assert made.facts["heads_check"].startswith("head 1 is right at 39 of 39 positions")
        made.engine.stop()
    dist.destroy_process_group()
    wrong = tiny_config(folder, tensor_parallel_size=2, heads={"source": str(folder / "wrong")})
    with pytest.raises(GroupError if rank else HeadsError):
        EngineRank(wrong, folder, rank, store, 1)


def test_two_ranks_start_with_right_heads_and_both_refuse_wrong_ones(folder: Path) -> None:
    for name, skill in (("right", 1), ("wrong", 2)):
        save_heads(folder / name, [shifted(k + skill) for k in (1, 2, 3)])
    store = start.open_store(2, "127.0.0.1", 60)
    mp.spawn(_one_of_two, (folder, store.port), nprocs=2)
