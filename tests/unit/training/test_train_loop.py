"""Training on places made by hand: a text that counts must be learned to the last place, and a kill changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medusa_dist.errors import EngineError
from medusa_dist.medusa.heads.description import BaseModelFacts, HeadsDescription
from medusa_dist.medusa.heads.trainable import TrainableHeads
from medusa_dist.training.hidden_states import Positions
from medusa_dist.training.train_loop import Recipe, Trainer, schedule

pytestmark = pytest.mark.usefixtures("one_thread")
VOCAB, HIDDEN, HEADS = 23, 24, 3
RECIPE = Recipe(epochs=30, batch_tokens=64, learning_rate=0.02, warm_up_steps=5, checkpoint_steps=10, patience=99)


def counting_places(num_answers: int, length: int = 20, seed: int = 0, strides: int = 3) -> Positions:
    """Answers that count by one of the strides 1, 2, ..., told by the state: token v + stride follows v."""
    generator = torch.Generator().manual_seed(seed)
    tokens, hidden, owners = [], [], []
    for answer in range(num_answers):
        start, stride = (int(x) for x in torch.randint(60, (2,), generator=generator))
        stride = 1 + stride % strides
        for place in range(length):
            token = (7 * start + stride * place) % VOCAB
            state = torch.zeros(HIDDEN)
            state[token], state[-1] = 3.0, float(stride)
            tokens.append(token)
            hidden.append(state)
            owners.append(answer)
    made = torch.tensor(tokens)
    return Positions(
        torch.stack(hidden),
        made,
        torch.stack([made, (made + 5) % VOCAB], 1).int(),
        torch.tensor([[0.95, 0.05]]).repeat(len(made), 1).half(),
        torch.tensor(owners),
        torch.ones(len(made), dtype=torch.bool),
    )


def new_heads(
    form: str = "sequential", tapped_layers: tuple[int, ...] = (-1,), layer_width: int | None = None
) -> TrainableHeads:
    torch.manual_seed(3)
    about = HeadsDescription(
        form=form,
        width=64 if form == "sequential" else None,
        num_heads=HEADS,
        offsets=(1, 2, 3),
        dtype="bfloat16",
        tapped_layers=tapped_layers,
        base=BaseModelFacts(
            name="counting", fingerprint=None, hidden_size=HIDDEN, vocab_size=VOCAB, layer_width=layer_width
        ),
    )
    return TrainableHeads(about, torch.eye(VOCAB, HIDDEN), 3 * torch.eye(VOCAB, HIDDEN))


def trainer(
    folder: Path, recipe: Recipe = RECIPE, places: Positions | None = None, form: str = "sequential"
) -> Trainer:
    folder.mkdir(exist_ok=True)
    both = (counting_places(60) if places is None else places, counting_places(9, seed=5))
    return Trainer(new_heads(form), both, torch.arange(VOCAB), recipe, folder, "key")


@pytest.mark.parametrize(("form", "strides"), [("sequential", 3), ("hidden+embedding", 1)])
def test_predictable_tokens_are_learned_by_every_head(form: str, strides: int, tmp_path: Path) -> None:
    """Each head at place t learns the token at t + k, so the chain of all three is right nearly everywhere."""
    job = trainer(tmp_path, places=counting_places(60, strides=strides), form=form)
    job.held = counting_places(9, seed=5, strides=strides)
    rows = torch.arange(200)
    with torch.no_grad():
        before = [float(loss) for loss in job._head_losses(rows)]
    job.load(job.run(lambda _: None))
    with torch.no_grad():
        after = [float(loss) for loss in job._head_losses(rows)]
    score = job.score()
    assert len(after) == HEADS and all(b < 0.5 * a for a, b in zip(before, after, strict=True))
    assert all(head[0] > 0.99 for head in score.accuracies) and score.chain > 3.7
    assert all(head == sorted(head) for head in score.accuracies)


@pytest.mark.parametrize("tapped", [True, False])
def test_information_of_an_inner_layer_is_learned_only_if_tapped(tapped: bool, tmp_path: Path) -> None:
    """The stride is taken out of the last state. Told by another layer, it is learned; not told, it cannot be."""

    def told(places: Positions) -> Positions:
        strides = torch.nn.functional.one_hot(places.hidden[:, -1].long(), 5).float()
        last = torch.cat([places.hidden[:, :-1], torch.zeros(len(places), 1)], 1)
        return replace(places, hidden=torch.cat([last, 100 * strides], 1) if tapped else last)

    heads = new_heads(tapped_layers=(-1, 4) if tapped else (-1,), layer_width=5)
    both = told(counting_places(60)), told(counting_places(9, seed=5))
    job = Trainer(heads, both, torch.arange(VOCAB), RECIPE, tmp_path, "key")
    best = job.run(lambda _: None)
    job.load(best)
    assert ("taps.weight" in best) == tapped and (not tapped or float(best["taps.weight"].abs().max()) > 0.1)
    assert (job.score().chain > 3.7) == tapped


def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    short = RECIPE.model_copy(update={"epochs": 3.0})
    whole = trainer(tmp_path / "whole", short)
    expected = whole.run(lambda _: None)

    class Killed(Exception):
        pass

    def kill(text: str) -> None:
        if text.startswith("training: 27 of "):
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path / "cut", short).run(kill)
    again = trainer(tmp_path / "cut", short)
    assert again.progress.step == 20  # the last checkpoint
    found = again.run(lambda _: None)
    assert vars(again.progress) == vars(whole.progress)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)
    other = short.model_copy(update={"seed": 1})
    assert trainer(tmp_path / "cut", other).progress.step == 0  # another recipe begins anew


def test_loss_that_is_not_finite_is_an_engine_error(tmp_path: Path) -> None:
    places = counting_places(60)
    places.hidden[17] = float("nan")
    with pytest.raises(EngineError, match=r"not finite at step \d+ \(batch of positions \d+\.\.\d+"):
        trainer(tmp_path, places=places).run(lambda _: None)


def test_batches_without_a_target_are_skipped(tmp_path: Path) -> None:
    job = trainer(tmp_path, places=counting_places(70, length=1))
    before = {name: t.clone() for name, t in job.heads.state_dict().items()}
    job._step()
    assert job.progress.step == 1 and job.losses == []
    assert all(torch.equal(t, before[name]) for name, t in job.heads.state_dict().items())


def test_training_stops_after_patience_epochs_without_a_gain(tmp_path: Path) -> None:
    still = RECIPE.model_copy(update={"learning_rate": 1e-7, "patience": 2})
    job = trainer(tmp_path, still)
    noted: list[str] = []
    job.run(lambda _: None, noted.append)
    assert job.progress.step == 3 * job.steps_per_epoch
    assert [text.split(":")[0] for text in noted] == [f"after step {i * job.steps_per_epoch}" for i in (1, 2, 3)]


def test_batches_of_an_epoch_hold_each_position_at_most_once(tmp_path: Path) -> None:
    job = trainer(tmp_path)
    seen = torch.cat([job.batch(step) for step in range(job.steps_per_epoch)])
    assert len(seen) == len(set(seen.tolist())) > len(job.train) - RECIPE.batch_tokens
    assert not torch.equal(job.batch(0), job.batch(job.steps_per_epoch))


def test_learning_rate_warms_up_linearly_then_falls_to_zero() -> None:
    rates = [schedule(step, 10, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[99] < 0.001
