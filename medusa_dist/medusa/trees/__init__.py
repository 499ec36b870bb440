"""Candidate trees: what is drafted, how much of it is verified, what is accepted."""
