"""Beam search over Medusa trees, as pure functions."""
