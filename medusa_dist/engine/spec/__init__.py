"""Speculation on rank 0: which drafts are verified, how they are made, which tokens are accepted."""
