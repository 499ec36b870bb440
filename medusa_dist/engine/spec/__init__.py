"""Speculation on rank 0: which draft tokens are verified, and which are accepted."""
