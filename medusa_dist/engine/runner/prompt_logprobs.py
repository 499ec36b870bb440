"""PromptLogprobs: log-probabilities of prompt tokens, for requests with `prompt_logprobs`.

Owns their computation where the logits are gathered, in chunks of PIECE_ROWS rows to bound memory. Not here: which rows
are scored (state/sequence.py, scheduler/plan_builder.py), logprobs of output tokens (spec/token_selector.py).
Shapes: R scored rows of the step, sequence by sequence, V vocabulary, Vs this rank's shard of it, K top tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medusa_dist.ops.arrays import Floats, Ints
from medusa_dist.ops.sampling import top_tokens
from medusa_dist.ops.tp_group import TPGroup
from medusa_dist.outputs import TokenLogprobs

PIECE_ROWS = 64  # full rows of 128k float32 logits: 32 MB


@dataclass(frozen=True)
class PromptLogprobs:
    """For each scored row, the log-probability of the next prompt token and the K most likely tokens."""

    targets: Ints  # [R]
    logprobs: Floats  # [R]
    top_ids: Ints  # [R, K]
    top_logprobs: Floats  # [R, K]

    def entries(self, begin: int, count: int, num_top: int) -> list[TokenLogprobs]:
        """Rows begin .. begin + count in the form of a request's output, with num_top <= K alternatives each."""
        return [
            TokenLogprobs(
                token_id=int(self.targets[row]),
                logprob=float(self.logprobs[row]),
                top_ids=tuple(self.top_ids[row, :num_top].tolist()),
                top_logprobs=tuple(self.top_logprobs[row, :num_top].tolist()),
            )
            for row in range(begin, begin + count)
        ]


def gather_prompt_logprobs(
    logits: Tensor, targets: Ints, num_top: int, vocab_size: int, parallel: TPGroup
) -> PromptLogprobs | None:
    """logits: [R, Vs] of this rank; called by all ranks together. targets: [R]. None on ranks other than 0."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for begin in range(0, len(targets), PIECE_ROWS):
        shards = parallel.gather_to_rank0(logits[begin : begin + PIECE_ROWS].float())
        if shards is None:
            continue
        log_p = torch.log_softmax(torch.cat(shards, dim=1)[:, :vocab_size], dim=-1)
        here = torch.from_numpy(targets[begin : begin + PIECE_ROWS]).to(log_p.device)
        values, ids = top_tokens(log_p, num_top)
        parts.append((log_p.gather(1, here[:, None])[:, 0].cpu(), ids.cpu(), values.cpu()))
    if parallel.rank != 0:
        return None
    logprobs, top_ids, top_logprobs = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return PromptLogprobs(targets, logprobs, top_ids, top_logprobs)
