"""Rank 0's state on the host: sequences, KV blocks, the waiting queue, limits. No tensors."""
