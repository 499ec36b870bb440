"""Shared parts of several commands: progress, prompts, opening a model."""
