"""Teacher-forced hidden states and top-M distributions of the distilled answers.

Owns the teacher-forced pass and the file of its results. Not here: the answers (distilled_dataset.py), training
(train_heads.py).
Computed once and read in every epoch. A position is one emitted token ("the token just emitted" when heads draft):
`hidden` is the state that predicted it, and the next positions of the same answer hold what the heads should guess
after it. Heads with a prefix layer see whole texts, so for them the tokens of prompts are positions, too.
Shapes: N positions of all answers, in order; I width of what the heads read (the hidden state, then the aux hidden
states), M tokens kept of each distribution.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from medusa_dist.errors import ConfigError
from medusa_dist.model.attention_bridge import Attend, attention_context
from medusa_dist.model.load import ShardedModel
from medusa_dist.ops.attention.backend import AttentionParams
from medusa_dist.training.distilled_dataset import DistilledAnswer, Origin, read_answers

KEPT = 12  # tokens kept of each distribution; they hold nearly all of the probability
PASS_ROWS = 2048  # tokens per pass
_PIECE_ROWS = 256  # rows of float32 logits at a time
_FEWEST = 20  # fewest answers, so that some can be held out


@dataclass(frozen=True)
class Data:
    """Answers, and the file they were read from."""

    origin: Origin
    answers: list[DistilledAnswer]
    path: Path

    def held_out(self, share: float) -> Tensor:
        """[number of answers]: whether an answer is held out. All answers of a prompt are held out, or none."""
        marks = torch.tensor([_mark(answer.id.split(":")[0]) for answer in self.answers])
        return marks <= max(share, float(marks.min()))


def _mark(prompt: str) -> float:
    """A number from 0 to 1, the same for the same prompt."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") / 2**32


def read_data(path: Path, model: str, found: str) -> Data:
    """The answers to train on. found: fingerprint of the model to train for. Raises ConfigError."""
    origin, answers = read_answers(path)
    if origin.fingerprint is not None and origin.fingerprint != found:
        raise ConfigError(f"{path} holds answers of another model ({origin.model}); heads for {model} need its own")
    answers = [answer for answer in answers if len(answer.output_ids) > 1]
    if len(answers) < _FEWEST:
        raise ConfigError(f"{path} has {len(answers)} answers of at least 2 tokens; training needs at least {_FEWEST}")
    return Data(origin, answers, path)


@dataclass(frozen=True, eq=False)
class Positions:
    """hidden [N, I]; tokens [N]; base_ids, base_chances [N, M]: the base model's distribution here; answers [N].

    is_output [N]: whether it is a token of the answer, from which heads learn, or of the prompt.
    """

    hidden: Tensor
    tokens: Tensor
    base_ids: Tensor
    base_chances: Tensor
    answers: Tensor
    is_output: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def texts(self) -> list[tuple[int, int]]:
        """The range of positions of each answer, with its prompt if that is here."""
        ends = torch.unique_consecutive(self.answers, return_counts=True)[1].cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All positions in order, about `size` at a time, in whole answers."""
        begin = 0
        for number, (_, end) in enumerate(self.texts):
            if end - begin >= size or number + 1 == len(self.texts):
                yield torch.arange(begin, end)
                begin = end

    def follows(self, places: Tensor, distance: int) -> Tensor:
        """Which of these positions have a position `distance` further in the same answer."""
        further = (places + distance).clamp_max(len(self) - 1)
        return (places + distance < len(self)) & (self.answers[further] == self.answers[places])

    def of(self, wanted: Tensor) -> "Positions":
        """The positions of the answers for which wanted [number of answers] is true."""
        rows = wanted[self.answers].nonzero().flatten()
        return Positions(*(getattr(self, name)[rows] for name in _FIELDS))


_FIELDS = ("hidden", "tokens", "base_ids", "base_chances", "answers", "is_output")


def data_key(
    answers: Sequence[DistilledAnswer],
    fingerprint: str | None,
    dtype: torch.dtype,
    aux_layers: Sequence[int] = (),
    with_prompts: bool = False,
) -> str:
    """Hash of everything that determines the result."""
    digest = hashlib.sha256(json.dumps([2, fingerprint, str(dtype), KEPT, with_prompts, *aux_layers]).encode())
    for answer in answers:
        digest.update(json.dumps([answer.prompt_ids, answer.output_ids]).encode())
    return digest.hexdigest()


def save_positions(places: Positions, path: Path, key: str) -> None:
    """Write them, completely or not at all."""
    scratch = path.with_suffix(".part")
    save_file({name: getattr(places, name).contiguous() for name in _FIELDS}, scratch, metadata={"key": key})
    scratch.replace(path)


def load_positions(path: Path, key: str) -> Positions | None:
    """The file that save_places wrote, if it was computed from the same data."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return Positions(*(file.get_tensor(name) for name in _FIELDS))


@torch.inference_mode()
def collect(
    model: ShardedModel,
    answers: Sequence[DistilledAnswer],
    advance: Callable[[int], None],
    with_prompts: bool = False,
) -> Positions | None:
    """One pass of the model over all answers, several at a time. advance: called with the number of tokens done.
    with_prompts: the tokens of prompts but the first are positions, too.

    Called by all ranks together; rank 0 gets the result, the others None.
    """
    parts: list[tuple[Tensor, ...]] = []
    begin = 0
    while begin < len(answers):
        end, rows = begin + 1, _length(answers[begin])
        while end < len(answers) and rows + _length(answers[end]) <= PASS_ROWS:
            rows += _length(answers[end])
            end += 1
        if (part := _pass(model, answers[begin:end], begin, with_prompts)) is not None:
            parts.append(part)
        advance(sum(len(answer.output_ids) for answer in answers[begin:end]))
        begin = end
    return Positions(*(torch.cat(each) for each in zip(*parts, strict=True))) if parts else None


def _length(answer: DistilledAnswer) -> int:
    return len(answer.prompt_ids) + len(answer.output_ids)


def _pass(
    model: ShardedModel, answers: Sequence[DistilledAnswer], first: int, with_prompts: bool
) -> tuple[Tensor, ...] | None:
    """Positions of a few answers, flattened into one row of tokens; None on ranks other than 0."""
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    tokens: list[int] = []
    owners: list[int] = []
    lengths: list[int] = []
    is_output: list[bool] = []
    for number, answer in enumerate(answers, start=first):
        begin = len(ids)
        ids += [*answer.prompt_ids, *answer.output_ids]
        lengths.append(len(ids) - begin)
        positions += range(lengths[-1])
        # The state after the last token of the prompt predicted the first token of the answer, and so on.
        num_before = len(answer.prompt_ids) - 1 if with_prompts else 0
        start = begin + len(answer.prompt_ids) - 1 - num_before
        rows += range(start, len(ids) - 1)
        tokens += ids[start + 1 :]
        is_output += [False] * num_before + [True] * len(answer.output_ids)
        owners += [number] * (num_before + len(answer.output_ids))
    device = model.device
    with attention_context.using(packed_attention(lengths)):
        logits, hidden = model.forward(*(torch.tensor(x, device=device) for x in (ids, positions, rows)))
    likeliest = _likeliest(model, logits)
    if likeliest is None:
        return None
    made = (hidden, torch.tensor(tokens), *likeliest, torch.tensor(owners), torch.tensor(is_output))
    return tuple(x.cpu() for x in made)


def _likeliest(model: ShardedModel, logits: Tensor) -> tuple[Tensor, Tensor] | None:
    """logits [R, Vs] of this rank -> the most likely ids and their probabilities, [R, M] on rank 0; None on the others.

    Each rank finds the best of its columns, so that only a few numbers per row are sent.
    """
    parallel, kept = model.parallel, min(KEPT, model.vocab_size)
    num_valid = max(0, min(model.vocab_size - model.vocab_start, model.vocab_shard))  # padding comes after them
    ids, chances = [], []
    for part in torch.split(logits, _PIECE_ROWS):  # a full float32 copy would be large
        mine = part.float()
        mine[:, num_valid:] = float("-inf")
        values, columns = mine.topk(min(kept, model.vocab_shard), dim=-1)
        sums = mine.logsumexp(dim=-1, keepdim=True)
        gathered = [parallel.gather_to_rank0(x) for x in (values, columns + model.vocab_start, sums)]
        every = [torch.cat(shards, dim=1) for shards in gathered if shards is not None]
        if every:
            best, indices = every[0].topk(kept, dim=-1)
            ids.append(every[1].gather(1, indices).int())
            chances.append((best - every[2].logsumexp(dim=-1, keepdim=True)).exp().half())
    return (torch.cat(ids), torch.cat(chances)) if ids else None


def packed_attention(lengths: Sequence[int]) -> Attend:
    """Attention for sequences laid end to end, each causal; supports all options of a layer, in plain torch."""

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        assert params.rotary is None, "models are loaded without fused layers for training"
        out = []
        parts = (torch.split(x, list(lengths)) for x in (q, k, v))
        for one_q, one_k, one_v in zip(*parts, strict=True):
            # [1, heads, T, D] each
            qs, ks, vs = one_q.transpose(0, 1)[None], one_k.transpose(0, 1)[None], one_v.transpose(0, 1)[None]
            if params == AttentionParams(params.scale):
                made = F.scaled_dot_product_attention(qs, ks, vs, is_causal=True, scale=params.scale, enable_gqa=True)
            else:
                made = _plain(qs, ks, vs, params)
            out.append(made[0].transpose(0, 1))
        return torch.cat(out)

    return attend


def _plain(q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
    """q [1, Hq, T, D], k and v [1, Hk, T, D] -> [1, Hq, T, D], with window, softcap and sinks."""
    window, softcap, sinks = params.window, params.softcap, params.sinks
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1).float(), v.repeat_interleave(groups, dim=1).float()
    scores = params.scale * (q.float() @ k.transpose(-1, -2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    position = torch.arange(q.shape[2], device=q.device)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        column = sinks.float()[None, :, None, None].expand(1, -1, q.shape[2], 1)
        weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1)
    return (weights @ v).to(q.dtype)
