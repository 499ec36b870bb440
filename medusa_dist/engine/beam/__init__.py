"""Beam search in the engine: groups of sequences, their selection and their drafts."""
