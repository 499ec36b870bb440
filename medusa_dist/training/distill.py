"""`medusa-dist distill`: the served model answers prompts, and what it says becomes training data for its heads.

Owns the course of the job. Not here: the file (answers_file.py), decoding (llm.py), training (train_heads.py).
Heads learn to foresee this model, so its own answers teach them better than anybody else's (Medusa's and Hydra's
training data is made so, too). Heads that the model already has draft here as well: the answers are the same, sooner.
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
    """What decides the answers."""
    return Origin(
        model=llm.config.model,
        fingerprint=llm.facts.get("fingerprint"),
        dtype=llm.config.dtype,
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
    """Answer all prompts that target has no answer for yet. A killed job goes on where it was when run again.

    report: told how far it is. Raises ConfigError, also for a target that holds answers made otherwise.
    """
    asked = read_prompts(prompts)
    file = AnswersFile(target, origin)
    with closing(file):
        wanted = list(_jobs(llm, asked, origin))
        jobs = [job for job in wanted if job[0].id not in file.done]
        total, before = len(wanted), len(wanted) - len(jobs)
        report(ProgressText("distilling", before, total, "answers"))
        results = llm.as_finished([blank.prompt_ids for blank, _ in jobs], [params for _, params in jobs])
        for done, (place, result) in enumerate(results, start=before + 1):
            reason = result.finish_reason.value if result.finish_reason is not None else ""
            told = {"output_ids": result.token_ids, "finish_reason": reason}
            file.add(jobs[place][0].model_copy(update=told))
            report(ProgressText("distilling", done, total, "answers", f"{file.num_tokens:,} tokens"))
    return file


def _jobs(llm: LLM, asked: list[Question], origin: Origin) -> Iterator[tuple[DistilledAnswer, SamplingParams]]:
    """Every answer wanted, still blank, and how it is sampled: first one of each prompt, then a second of each."""
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
