"""Heads that see what was drafted before them: against one path at a time, and which guesses are followed up."""

import pytest
import torch
from torch.nn import functional as F

from medusa_dist.errors import HeadsError
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.sequential import SequentialHeads, build_heads, draft_paths
from medusa_dist.medusa.trees.candidates import NOWHERE
from medusa_dist.medusa.trees.draft import guess
from medusa_dist.medusa.trees.levels import FOLLOWED, Growth, Lists
from tests.support.tiny_heads import HIDDEN, VOCAB, describe, random_heads, tensors_for

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BASE = {"name": "tiny", "fingerprint": None, "hidden_size": HIDDEN, "vocab_size": VOCAB}
FIELDS = {"form": "sequential", "width": 17, "embedding_scale": 0.7, "draft_vocab_size": 19}


def made_heads(num_heads: int = 3, seed: int = 0) -> tuple[HeadsFile, SequentialHeads, torch.Tensor]:
    """File, module, and input embeddings [V, H]."""
    file = random_heads(seed, num_heads=num_heads, **FIELDS)
    generator = torch.Generator().manual_seed(seed + 1)
    rows, embeddings = (torch.randn(n, HIDDEN, generator=generator) for n in (19, VOCAB))
    heads = build_heads(file, rows, torch.float32, CPU)
    assert isinstance(heads, SequentialHeads)
    return file, heads, embeddings


def naive(file: HeadsFile, heads: SequentialHeads, hidden: torch.Tensor, tokens: list[torch.Tensor]) -> torch.Tensor:
    """Logits [D] of the last head, after these tokens' embeddings, by the formula."""
    state = hidden
    t = file.tensors
    for embedding in tokens:
        x = torch.cat([state, 0.7 * embedding])
        state = state + t["cell.down.weight"] @ F.silu(t["cell.up.weight"] @ x + t["cell.up.bias"])
    return heads._output(state[None])[0]


def draft(
    heads: SequentialHeads,
    embeddings: torch.Tensor,
    temperatures: torch.Tensor,
    noise: torch.Tensor | None,
    growth: Growth,
) -> tuple[torch.Tensor, Lists]:
    generator = torch.Generator().manual_seed(9)
    hidden = torch.randn(2, HIDDEN, generator=generator)
    ids = heads.token_ids
    assert ids is not None
    embed = lambda columns: embeddings[ids[columns]]  # noqa: E731
    return hidden, draft_paths(heads, hidden, embeddings[[3, 4]], embed, (temperatures, noise), growth)


@pytest.mark.parametrize("warm", [False, True])
def test_every_list_is_what_the_cell_gives_for_its_own_path(warm: bool) -> None:
    file, heads, embeddings = made_heads(4)
    noise = torch.randn(2, 4, 19, generator=torch.Generator().manual_seed(5)) if warm else None
    temperatures = torch.tensor([0.0, 0.8 if warm else 0.0])
    hidden, lists = draft(heads, embeddings, temperatures, noise, Growth(4, 10))
    assert heads.token_ids is not None
    for b in range(2):
        going = [(0, 0, [embeddings[3 + b]])]
        seen = 0
        while going:
            place, depth, path = going.pop()
            seen += 1
            logits = naive(file, heads, hidden[b], path)[None, None]
            columns, confidences = guess(
                logits, temperatures[b : b + 1], None if noise is None else noise[b, depth][None, None]
            )
            assert lists.columns[b, place].tolist() == columns[0, 0].tolist()
            assert lists.confidences[b, place].tolist() == pytest.approx(confidences[0, 0].tolist(), abs=1e-4)
            for rank, behind in enumerate(lists.follows[b, place].tolist()):
                if behind != NOWHERE:
                    token = heads.token_ids[lists.columns[b, place, rank]]
                    going.append((behind, depth + 1, [*path, embeddings[token]]))
        assert seen == lists.columns.shape[1] == 1 + sum(FOLLOWED)


def test_cell_starts_from_the_normed_tapped_layers() -> None:
    """By the formula; and neither the scale of a layer nor that of a token matters."""
    about = describe(**FIELDS, tapped_layers=(-1, 1, 6), base={**BASE, "layer_width": 5})
    file = HeadsFile(about, tensors_for(about))
    heads = build_heads(file, torch.randn(19, HIDDEN), torch.float32, CPU)
    assert isinstance(heads, SequentialHeads)
    read = torch.randn(4, HIDDEN + 10, generator=torch.Generator().manual_seed(0))
    first, second = (t / t.pow(2).mean(-1, keepdim=True).sqrt() for t in (read[:, HIDDEN:-5], read[:, -5:]))
    expected = read[:, :HIDDEN] + torch.cat([first, second], 1) @ file.tensors["taps.weight"].T
    torch.testing.assert_close(heads.start(read), expected, atol=1e-5, rtol=1e-5)
    scaled = read.clone()
    scaled[:, HIDDEN:-5] *= 1000.0
    scaled[2, -5:] *= 0.1
    torch.testing.assert_close(heads.start(scaled), expected, atol=1e-3, rtol=1e-3)
    embeddings = torch.randn(19, HIDDEN)
    with_taps, without = (
        draft_paths(one, rows, torch.zeros(4, HIDDEN), embeddings.__getitem__, (torch.zeros(4), None), Growth(3, 10))
        for one, rows in ((heads, read), (heads, torch.cat([expected, torch.zeros(4, 10)], 1)))
    )
    assert torch.equal(with_taps.columns[:, 0], without.columns[:, 0])  # taps of zeros add nothing
    plain = draft_paths(
        heads,
        read * torch.cat([torch.ones(HIDDEN), torch.zeros(10)]),
        torch.zeros(4, HIDDEN),
        embeddings.__getitem__,
        (torch.zeros(4), None),
        Growth(3, 10),
    )
    assert not torch.equal(with_taps.columns[:, 0], plain.columns[:, 0])


def test_likeliest_paths_are_drafted_further() -> None:
    _, heads, embeddings = made_heads(3)
    _, lists = draft(heads, embeddings, torch.zeros(2), None, Growth(3, 10))
    first = lists.follows[0, 0]
    assert (first != NOWHERE).tolist() == [True] * 3 + [False] * 7
    values = lists.confidences[0, 0, :3, None] * lists.confidences[0, 1:4]
    followed = (lists.follows[0, 1:4] != NOWHERE).flatten()
    assert followed.sum() == 2 and values.flatten()[followed].min() >= values.flatten()[~followed].max()


def test_static_tree_is_drafted_further_only_where_it_has_children() -> None:
    paths = ((0,), (1,), (5,), (1, 2), (5, 0), (1, 2, 3))
    _, heads, embeddings = made_heads(4)
    _, lists = draft(heads, embeddings, torch.zeros(2), None, Growth(4, 10, paths))
    assert lists.columns.shape[1] == 4
    for b in range(2):
        follows = lists.follows[b]
        assert {(place, rank) for place, rank in (follows != NOWHERE).nonzero().tolist()} == {(0, 1), (0, 5), (1, 2)}
        assert follows[0, [1, 5]].tolist() == [1, 2] and follows[1, 2] == 3


def test_paths_of_low_confidence_are_not_drafted_further() -> None:
    _, heads, embeddings = made_heads(4)
    sure = draft(heads, embeddings, torch.zeros(2), None, Growth(4, 10))[1]
    heads.description = heads.description.model_copy(update={"logit_scale": 1e-3})  # every token alike: 1 in 19
    unsure = draft(heads, embeddings, torch.zeros(2), None, Growth(4, 10))[1]
    assert sure.columns.shape[1] > 1 == unsure.columns.shape[1] and (unsure.follows == NOWHERE).all()
    static = draft(heads, embeddings, torch.zeros(2), None, Growth(4, 10, ((0,), (0, 0), (0, 0, 0))))[1]
    assert static.columns.shape[1] == 3


def test_growth_counts_are_bounded_by_tokens_and_heads() -> None:
    assert Growth(4, 2).counts == [2, 2, 1]
    assert Growth(1, 2).counts == []
    assert Growth(3, 10, ((0,), (1,))).counts == [0, 0]


def test_invalid_sequential_description_is_refused() -> None:
    for fields in ({"form": "sequential"}, {"width": 4}, {"form": "sequential", "width": 4, "lm_head": "own"}):
        with pytest.raises(ValueError, match="sequential"):
            describe(**fields)
    about = describe(**FIELDS)
    tensors = tensors_for(about)
    del tensors["cell.down.weight"]
    with pytest.raises(HeadsError, match=r"cell\.down\.weight is missing"):
        HeadsFile(about, tensors)
