"""Reasoning marks: how a model family separates its reasoning from its answer.

Owns the table of marks and which ones a chat template implies. Not here: splitting an answer (answer_reader.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The texts around the reasoning."""

    open: str
    close: str

    def is_open_after(self, prompt: str) -> bool:
        """Whether the prompt already opened the reasoning, so that the model's first text belongs to it."""
        return prompt.rstrip().endswith(self.open)


REASONING = {
    "think": ReasoningMarks("<think>", "</think>"),  # DeepSeek R1, Qwen3, SmolLM3, QwQ, GLM, MiniMax
    "mistral": ReasoningMarks("[THINK]", "[/THINK]"),  # Magistral
    "seed": ReasoningMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
}


def implied_reasoning(chat_template: str) -> ReasoningMarks | None:
    """The marks that a chat template writes or removes; None: none that are known."""
    return next((marks for marks in REASONING.values() if marks.close in chat_template), None)
