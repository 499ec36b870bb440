"""The algorithm: trees, drafting, acceptance, heads. Nearly all pure functions."""
