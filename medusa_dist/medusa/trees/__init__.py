"""Candidate trees: what is drafted, how many drafts are verified, what is accepted."""
