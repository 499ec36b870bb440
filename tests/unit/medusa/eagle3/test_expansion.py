"""Drafting with EAGLE-3 heads: every guess is that of the plain network over the whole text, whatever was cached."""

import pytest
import torch
from torch import Tensor

from medusa_dist.medusa.eagle3.checkpoint import Eagle3File
from medusa_dist.medusa.eagle3.expansion import Context, draft_levels, room_for
from medusa_dist.medusa.eagle3.layer import Eagle3
from medusa_dist.medusa.trees.candidates import NOWHERE
from medusa_dist.medusa.trees.draft import guess
from medusa_dist.medusa.trees.levels import Growth, Lists
from tests.support.tiny_eagle3 import FORMS, HIDDEN, VOCAB, in_memory, plain_network

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [2, 9, 1, 6]  # of the texts, roots included: one has no context at all


def texts(num_taps: int) -> tuple[list[list[int]], list[Tensor]]:
    """Tokens of each text, and the tapped states of all but its last token."""
    generator = torch.Generator().manual_seed(4)
    tokens = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    # A text's first token is read by no pair: its state is that of the second.
    return tokens, [torch.randn(length, num_taps * HIDDEN, generator=generator) for length in LENGTHS]


def drafted(file: Eagle3File, growth: Growth, chance: tuple[Tensor, Tensor | None]) -> Lists:
    """Drafted in one batch, over keys and values that were computed before, pair by pair, with a pair less each."""
    heads = Eagle3(file, None, torch.float32, torch.device("cpu"))
    embedding, about = file.tensors["embed_tokens.weight"], file.config
    tokens, tapped = texts(about.num_taps)
    longest = max(LENGTHS)
    shape = (len(LENGTHS), about.num_kv_heads, longest + room_for(growth), about.head_dim)
    context = Context(
        torch.zeros(shape),
        torch.zeros(shape),
        torch.arange(longest).expand(len(LENGTHS), -1),
        torch.zeros(len(LENGTHS), longest, dtype=torch.bool),
    )
    fused = [heads.fuse(states) for states in tapped]
    for b, length in enumerate(LENGTHS):
        for i in range(1, length - 1):
            pair, _ = heads.read(embedding[tokens[b][i]][None], fused[b][i - 1][None])
            keys, values = heads.keys_values(pair, torch.tensor([i]))
            context.keys[b, :, i], context.values[b, :, i] = keys[0], values[0]
            context.seen[b, i] = True
    roots = torch.tensor([text[-1] for text in tokens])
    before = torch.stack([states[max(0, length - 2)] for states, length in zip(fused, LENGTHS, strict=True)])
    ids = file.draft_vocab
    assert ids is not None
    start = embedding[roots], before, torch.tensor(LENGTHS) - 1
    with torch.inference_mode():
        return draft_levels(heads, start, lambda columns: embedding[ids[columns]], context, chance, growth)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("warm", [False, True])
def test_every_list_is_what_the_plain_network_gives_after_its_own_path(form: str, warm: bool) -> None:
    file = in_memory(form)
    size, known = len(LENGTHS), file.num_known
    noise = None
    if warm:
        noise = torch.randn(size, file.num_levels, known, generator=torch.Generator().manual_seed(5))
    temperatures = torch.tensor([0.0, 0.8, 1.0, 1.0]) if warm else torch.zeros(size)
    growth = Growth(file.num_levels, 10, least=0.0)
    lists = drafted(file, growth, (temperatures, noise))
    tokens, tapped = texts(file.config.num_taps)
    for b, text in enumerate(tokens):
        going: list[tuple[int, list[int]]] = [(0, [])]
        seen = 0
        while going:
            place, path = going.pop()
            seen += 1
            # A lone token has no token before it; the test's state for it is the first.
            whole = [0, *text] if len(text) == 1 else text
            logits = plain_network(file, whole, tapped[b][: len(whole) - 1], path)[None, None]
            level_noise = None if noise is None else noise[b, len(path)][None, None]
            columns, confidences = guess(logits, temperatures[b : b + 1], level_noise)
            torch.testing.assert_close(lists.confidences[b, place], confidences[0, 0], atol=1e-4, rtol=1e-3)
            assert lists.columns[b, place].tolist() == columns[0, 0].tolist()
            for index, then in enumerate(lists.follows[b, place].tolist()):
                if then != NOWHERE:
                    going.append((then, [*path, int(lists.columns[b, place, index])]))
        assert seen == lists.columns.shape[1] == 1 + sum(growth.counts)


def test_the_best_paths_by_joint_confidence_are_extended() -> None:
    file = in_memory("official")
    lists = drafted(file, Growth(file.num_levels, 10, least=0.0, followed=(4, 2)), (torch.zeros(4), None))
    assert lists.columns.shape[1] == 1 + 4 + 2 + 2 + 2
    for b in range(4):
        joint = {(0, r): float(lists.confidences[b, 0, r]) for r in range(10)}
        first = [(0, r) for r in range(10) if lists.follows[b, 0, r] != NOWHERE]
        assert sorted(joint, key=joint.__getitem__, reverse=True)[:4] == sorted(first, key=lambda g: -joint[g])
        second = {
            (int(lists.follows[b, 0, r]), s): joint[0, r] * float(lists.confidences[b, lists.follows[b, 0, r], s])
            for _, r in first
            for s in range(10)
        }
        extended = {(place, s) for place, s in second if lists.follows[b, place, s] != NOWHERE}
        assert extended == set(sorted(second, key=second.__getitem__, reverse=True)[:2])


def test_a_level_without_a_confident_path_is_not_drafted() -> None:
    lists = drafted(in_memory("official"), Growth(5, 10, least=1.01), (torch.zeros(4), None))
    assert lists.columns.shape[1] == 1
