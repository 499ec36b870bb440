"""Speculation on rank 0: how draft tokens are made, which are verified, which are accepted."""
