"""`medusa-dist distill`: the served model's answers as training data for its heads.

Owns the job. Not here: the file format (distilled_dataset.py), decoding (llm.py), training (train_heads.py).
Heads learn to predict this model, so its own answers are the best training text (Medusa and Hydra make their training
data the same way). Heads that the model already has are used to draft: the answers are the same, sooner.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from medusa_dist.llm import LLM
from medusa_dist.sampling_params import SamplingParams
from medusa_dist.tools.progress import ProgressText
from medusa_dist.tools.prompts import Question, prompt_ids, read_prompts
from medusa_dist.training.distilled_dataset import AnswersFile, DistilledAnswer, Origin

PROMPTS = Path(__file__).parents[1] / "data" / "train_prompts.jsonl"


def origin_of(
    llm: LLM, prompts: Path, temperatures: tuple[float, ...], samples: int, max_tokens: int, seed: int = 0
) -> Origin:
    """Everything that determines the answers."""
    return Origin(
        model=llm.config.model,
        fingerprint=llm.facts.get("fingerprint"),
        dtype=llm.facts["dtype"],
        prompts=prompts.name,
        prompts_sha256=hashlib.sha256(prompts.read_bytes()).hexdigest(),
        temperatures=temperatures,
        samples=samples,
        max_tokens=max_tokens,
        seed=seed,
    )


def distill(
    llm: LLM, prompts: Path, target: Path, origin: Origin, report: Callable[[str], None] = lambda _: None
) -> AnswersFile:
    """Answer all prompts that the target file has no answer for yet. A killed job resumes when run again.

    report: called with the progress. Raises ConfigError, also for a target whose answers were made with other options.
    """
    asked = read_prompts(prompts)
    file = AnswersFile(target, origin)
    with closing(file):
        wanted = list(_jobs(llm, asked, origin))
        jobs = [job for job in wanted if job[0].id not in file.done]
        total, before = len(wanted), len(wanted) - len(jobs)
        report(ProgressText("distilling", before, total, "answers"))
        results = llm.as_finished([blank.prompt_ids for blank, _ in jobs], [params for _, params in jobs])
        for done, (index, result) in enumerate(results, start=before + 1):
            reason = result.finish_reason.value if result.finish_reason is not None else ""
            fields = {"output_ids": result.token_ids, "finish_reason": reason}
            file.add(jobs[index][0].model_copy(update=fields))
            report(ProgressText("distilling", done, total, "answers", f"{file.num_tokens:,} tokens"))
    return file


def _jobs(llm: LLM, asked: list[Question], origin: Origin) -> Iterator[tuple[DistilledAnswer, SamplingParams]]:
    """Every answer to make, still empty, and how it is sampled: first one of each prompt, then a second of each."""
    room = int(llm.facts["max_model_len"]) - 1
    ids = [tuple(prompt_ids(llm, prompt.text)) for prompt in asked]
    for sample in range(origin.samples):
        for number, prompt in enumerate(asked):
            if len(ids[number]) > room:
                continue
            name = f"{number}:{sample}"
            temperature = origin.temperatures[(number + sample) % len(origin.temperatures)]
            digest = hashlib.blake2b(f"{origin.seed}/{name}".encode(), digest_size=7).digest()
            params = SamplingParams(
                max_tokens=origin.max_tokens, temperature=temperature, seed=int.from_bytes(digest, "big")
            )
            blank = DistilledAnswer(
                id=name,
                category=prompt.category,
                temperature=temperature,
                finish_reason="",
                prompt_ids=ids[number],
                output_ids=(),
            )
            yield blank, params
