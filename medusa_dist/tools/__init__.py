"""What several commands share: progress, prompts, opening a model."""
