"""From logits to token scores: grammar mask, bias, penalties, temperature, filters, argmax.

Owns the order in which they apply (vLLM's): grammar or allowed tokens, bias and bans, penalties, temperature, min_p,
top_k, top_p, noise.
Not here: the noise (noise.py), which rows are adjusted (engine/spec/token_selector.py).
Shapes: R rows, V vocabulary columns (or a rank's shard of them).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_dist.outputs import TokenLogprobs
from medusa_dist.sampling_params import SamplingParams

NEVER = float("-inf")


def lowest_argmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value of each row and the lowest column that has it: values [R] float32, columns [R] int64.

    A row of NaN has no such column and gets column V: the caller sees an invalid id, not a wrong token.
    """
    if scores.device.type == "cpu":
        # NumPy's argmax is vectorised, ten times faster than torch's, and returns the first maximum by definition.
        first = torch.from_numpy(scores.float().numpy().argmax(axis=-1))
        values = scores.gather(-1, first[:, None]).squeeze(-1).float()
        return values, first.masked_fill(values.isnan(), scores.shape[-1])
    best = scores.amax(dim=-1, keepdim=True)
    columns = torch.arange(scores.shape[-1], device=scores.device)
    first = torch.where(scores == best, columns, scores.shape[-1]).amin(dim=-1)
    return best.squeeze(-1).float(), first


def perturb(logits: Tensor, temperatures: Tensor, noise: Tensor) -> Tensor:
    """Scores [R, V] = logits / T + noise, T > 0; without the log-normaliser, which does not change the argmax."""
    return logits.float() / temperatures[:, None] + noise


@dataclass(frozen=True)
class History:
    """Inputs of the penalties: token ids of the prompt, and of the output up to the position being selected."""

    prompt_ids: Tensor  # [P] int64
    output_ids: Tensor  # [N] int64


def adjust(
    logits: Tensor, params: SamplingParams, history: History, eos_ids: tuple[int, ...], allowed: Tensor | None = None
) -> Tensor:
    """One row [V] of raw logits -> log-scores [V] after bias, bans, penalties, temperature and filters.

    allowed: bool [V], under a grammar; at least one token is allowed. It covers allowed_token_ids, too. What is allowed
    takes precedence: bias and bans that would leave none of its tokens do not apply. Filtered tokens are -inf. At
    temperature 0 filters always keep the best token, so they are skipped.
    """
    row = logits.float().clone()
    if allowed is not None:
        row.masked_fill_(~allowed, NEVER)
    elif params.allowed_token_ids is not None:
        row = _only(row, params.allowed_token_ids)
    row = _penalise(_biased(row, params, history, eos_ids), params, history)
    if params.temperature == 0.0:
        return row
    row /= params.temperature
    return _filter(row, params)


def _biased(masked: Tensor, params: SamplingParams, history: History, eos_ids: tuple[int, ...]) -> Tensor:
    row = masked.clone()
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        row[list(ids)] += torch.tensor(values, device=row.device)
    banned = ends_of(params.bad_words, history.output_ids.tolist() if params.bad_words else [])
    if history.output_ids.numel() < params.min_tokens:
        banned += [*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)]
    row[banned] = NEVER
    return masked if row.amax() == NEVER else row


def _only(row: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """The row [V] with all other tokens at -inf."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=row.device)
    return torch.full_like(row, NEVER).index_copy_(0, ids, row[ids])


def ends_of(sequences: Iterable[str | tuple[int, ...]], output_ids: Sequence[int]) -> list[int]:
    """Last tokens of the token sequences that the output stands before: their other tokens are its end."""
    return [
        int(ids[-1])
        for ids in sequences
        if len(ids) <= len(output_ids) + 1 and tuple(output_ids[len(output_ids) - len(ids) + 1 :]) == ids[:-1]
    ]


def _penalise(row: Tensor, params: SamplingParams, history: History) -> Tensor:
    """Repetition penalty (Keskar et al. 2019; prompt and output), frequency and presence penalty (OpenAI; output)."""
    if params.repetition_penalty != 1.0:
        seen = torch.unique(torch.cat([history.prompt_ids, history.output_ids]))
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if history.output_ids.numel() and (params.frequency_penalty or params.presence_penalty):
        seen, counts = torch.unique(history.output_ids, return_counts=True)
        row[seen] -= params.frequency_penalty * counts + params.presence_penalty
    return row


def _filter(row: Tensor, params: SamplingParams) -> Tensor:
    """min_p, top_k, top_p on log-scores [V]; ties at a boundary go to the lower id, and at least one token remains."""
    if params.min_p > 0.0:
        log_p = torch.log_softmax(row, dim=-1)
        threshold = log_p.amax() + torch.log(torch.tensor(params.min_p, device=row.device))
        row = row.masked_fill(log_p < threshold, NEVER)
    if params.top_k > 0 or params.top_p < 1.0:
        ordered, ids = torch.sort(row, descending=True, stable=True)
        keep = torch.ones_like(ordered, dtype=torch.bool)
        if 0 < params.top_k < row.shape[0]:
            keep[params.top_k :] = False
        if params.top_p < 1.0:
            p = torch.softmax(ordered.masked_fill(~keep, NEVER).double(), dim=-1)
            # The token that moves the sum past top_p is kept, so compare the mass before it.
            keep &= (p.cumsum(-1) - p) < params.top_p
        keep[0] = True
        row = row.clone()
        row[ids[~keep]] = NEVER
    return row


def token_logprobs(logits: Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of one row [V] under the model's own distribution; ties among the top go to the lower id."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    values, ids = torch.sort(log_p, descending=True, stable=True) if num_top else (log_p[:0], log_p[:0])
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(log_p[token_id]),
        top_ids=tuple(int(i) for i in ids[:num_top]),
        top_logprobs=tuple(float(v) for v in values[:num_top]),
    )


def top_tokens(log_p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of each row [R, V] and their columns, falling; ties go to the lower column. [R, K].

    A plain topk for all rows, and a stable sort for the rare rows where a tie matters.
    """
    count = min(count, log_p.shape[-1])
    values, ids = log_p.topk(count, dim=-1)
    if count:
        tied = (log_p >= values[:, -1:]).sum(-1) > count
        tied |= (values[:, 1:] == values[:, :-1]).any(-1)
        for row in tied.nonzero().flatten().tolist():
            ordered, columns = torch.sort(log_p[row], descending=True, stable=True)
            values[row], ids[row] = ordered[:count], columns[:count]
    return values, ids
