"""Drafters: what guesses the next tokens on rank 0. See docs/architecture.md."""
