"""No tree that is verified has twins: two children of one parent with the same token.

On the real way of a draft: heads of each form, drafter, calibration, grammar (what it forbids and what it forces),
dynamic and static trees, budget. The walks through trees count on it: `Tree.children` knows one node a token, so behind
a second one nothing could ever be accepted (medusa/trees/accept.py, medusa/beam/search.py).
Why there are none: the guesses of a list are distinct columns of the heads' vocabulary, whose ids are distinct
(heads_file.py refuses others), all children of a node come from one list, each rank once, and what a grammar forces
stands alone in its list.
"""

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medusa_dist.config import SpeculationConfig
from medusa_dist.engine.beam.group import BeamGroup
from medusa_dist.engine.beam.result import Known
from medusa_dist.engine.drafters.head_drafter import HeadDrafter
from medusa_dist.engine.runner.worker import Scores
from medusa_dist.engine.spec.tree_policy import TreePolicy
from medusa_dist.engine.state.matcher import GrammarCompiler
from medusa_dist.engine.state.sequence import Sequence, StepResult
from medusa_dist.engine.state.single_sequence import SingleSequence
from medusa_dist.errors import HeadsError, RequestError
from medusa_dist.grammar import Grammar
from medusa_dist.medusa.beam.search import BeamRules
from medusa_dist.medusa.heads.heads_file import HeadsFile
from medusa_dist.medusa.heads.sequential import build_heads
from medusa_dist.medusa.trees.accept import Accepted
from medusa_dist.medusa.trees.budget import StepCost
from medusa_dist.medusa.trees.draft import DRAFT_TOP_K
from medusa_dist.medusa.trees.tree import Tree
from medusa_dist.named_trees import NAMED_TREES
from medusa_dist.request import Request
from medusa_dist.sampling_params import SamplingParams
from tests.support.tiny_heads import HIDDEN, VOCAB, random_heads
from tests.support.tiny_tokenizers import json_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, EOS, HEADS = torch.device("cpu"), 2, 4
GRAMMARS = GrammarCompiler(json_tokenizer, VOCAB, (EOS,))
ASKED = [
    None,
    None,
    None,
    Grammar.json_schema({"type": "array", "items": {"enum": ["ab", "tru", True, None, 10]}, "minItems": 2}),
    Grammar.regex("(ab|a){1,9}:[0-3]*"),
    Grammar.choice(["null", "true", "tru", "abba:aaaaaaaaaa", "abba:aaaaaaaaab"]),
]
COSTS = [None, StepCost((1, 8, 64), (1.0, 1.1, 1.6))]
FORMS = {"hidden": {}, "hidden+embedding": {}, "sequential": {"width": 17, "embedding_scale": 0.7}}
# A published tree, and one in which the order of paths is not the order of ranks.
STATIC = [NAMED_TREES["mc_sim_7b_63"], ((1,), (0,), (1, 3), (1, 0), (0, 2), (1, 0, 2), (1, 0, 1))]


def twins(tree: Tree) -> list[tuple[int, int]]:
    """(parent, token) of each node that is not the first of its kind."""
    pairs = list(zip(tree.parents, tree.tokens, strict=True))
    return [pair for i, pair in enumerate(pairs) if pair in pairs[:i]]


@dataclass(frozen=True)
class Draft:
    """One batch, drafted once. scale 0: all logits are equal. static: a place in STATIC; None: dynamic trees."""

    seed: int
    form: str
    scale: float
    draft_vocab_size: int | None
    num_sequences: int
    static: int | None
    cost: int
    max_nodes: int


drafts = st.builds(
    Draft,
    seed=st.integers(0, 2**20),
    form=st.sampled_from(list(FORMS)),
    scale=st.sampled_from([3.0, 0.5, 0.0]),
    draft_vocab_size=st.sampled_from([None, 19, 7, 2, 1]),
    num_sequences=st.integers(2, 5),
    static=st.sampled_from([None, None, 1, 0]),
    cost=st.integers(0, 1),
    max_nodes=st.sampled_from([63, 255, 15, 7, 1]),
)


def planted(case: Draft) -> list[tuple[Sequence, Tree]]:
    """What the engine would verify in its next step."""
    rng, generator = random.Random(case.seed), torch.Generator().manual_seed(case.seed)
    known = case.draft_vocab_size or VOCAB
    # Paths of ranks that are not there are refused at the start (check_paths).
    listed = () if case.static is None else STATIC[case.static]
    paths = tuple(path for path in listed if max(path) < min(DRAFT_TOP_K, known))
    sequences = [_sequence(i, rng) for i in range(case.num_sequences)]
    fields = {**FORMS[case.form], "draft_vocab_size": case.draft_vocab_size, "num_heads": HEADS}
    file = random_heads(case.seed, case.scale, form=case.form, **fields)
    rows = case.scale * torch.randn(known, HIDDEN, generator=generator)
    heads = build_heads(file, rows, torch.float32, CPU)
    drafter = HeadDrafter(heads, torch.randn(VOCAB, HIDDEN, generator=generator), VOCAB, paths or None)
    hidden = torch.randn(len(sequences), HIDDEN, generator=generator)
    if rng.random() < 0.1:
        hidden[0] = torch.nan  # a model gone wrong
    verdicts = [StepResult(sequence, Accepted((), ()), (), i) for i, sequence in enumerate(sequences)]
    made = drafter.draft(verdicts, Scores(torch.zeros(0).numpy(), {}, hidden))
    for sequence, candidates in zip(sequences, made, strict=True):
        sequence.candidates = {} if candidates is None else {"heads": candidates}
    mode = {"mode": "auto", "max_nodes": case.max_nodes} if not paths else {"mode": "static", "tree": paths}
    speculation = TreePolicy(SpeculationConfig.model_validate(mode), COSTS[case.cost])
    return [(planned.sequence, planned.tree) for planned in speculation.trees(sequences, rng.choice([0, 5]), 256)]


def _sequence(number: int, rng: random.Random) -> Sequence:
    """Somewhere in its text: a grammar has got so far by tokens that it allows. Some are beams."""
    grammar = rng.choice(ASKED)
    output: list[int] = []
    for _ in range(rng.randrange(6) if grammar is not None else 0):
        allowed = GRAMMARS.start(grammar, tuple(output)).state().allowed.nonzero()[0].tolist()
        token = rng.choice([i for i in allowed if i != EOS] or [EOS])
        try:
            GRAMMARS.start(grammar, (*output, token))
        except RequestError:  # the text is over
            break
        output.append(token)
    params = SamplingParams(temperature=rng.choice([0.0, 0.7, 1.5]), max_tokens=60, grammar=grammar)
    one = Request(request_id=str(number), prompt_ids=(5, 6, number), params=params, seed=rng.getrandbits(40))
    matcher = None if grammar is None else GRAMMARS.start(grammar, tuple(output))
    if matcher is None and rng.random() < 0.3:
        return _group(one, rng).root
    return SingleSequence(one, tuple(output), number, matcher).root


def _group(request: Request, rng: random.Random) -> BeamGroup:
    """A search of one beam, of which something may be remembered."""
    group = BeamGroup(request, BeamRules(1, 60, frozenset({EOS})))
    group.reach = rng.randrange(1, HEADS + 3)
    ranked = [(token, -1.0 - number) for number, token in enumerate(rng.sample(range(VOCAB), 5))]
    for path in [(), (ranked[0][0],), (ranked[1][0],)]:
        if rng.random() < 0.5:
            group.memory[0, path] = Known(ranked, torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1)))
    return group


SEEN = {"nodes": 0, "forced": 0, "siblings": 0}


@settings(max_examples=300, deadline=None)
@given(drafts)
def test_no_verified_tree_has_duplicate_siblings(case: Draft) -> None:
    for sequence, tree in planted(case):
        assert not twins(tree)
        assert sum(map(len, tree.children.values())) == len(tree)
        SEEN["nodes"] += len(tree)
        SEEN["siblings"] += sum(len(children) > 1 for children in tree.children.values())
        SEEN["forced"] += bool(sequence.matcher is not None and sequence.matcher.forced() and len(tree))


def test_duplicate_sibling_cases_held_nodes_siblings_and_forced_tokens() -> None:
    assert SEEN["nodes"] > 3000 and SEEN["siblings"] > 500 and SEEN["forced"] > 20, SEEN


def test_duplicate_siblings_are_detected_and_their_cause_is_refused() -> None:
    assert twins(Tree((4, 5, 4), (-1, -1, -1))) == [(-1, 4)]
    assert not twins(Tree((4, 4, 4), (-1, 0, 1)))
    file = random_heads(draft_vocab_size=7)
    file.tensors["draft_vocab"][3] = file.tensors["draft_vocab"][2]
    with pytest.raises(HeadsError, match="draft_vocab must be ascending"):
        HeadsFile(file.description, file.tensors)
