"""The Medusa algorithm: trees, acceptance, heads. Nearly all pure functions."""
