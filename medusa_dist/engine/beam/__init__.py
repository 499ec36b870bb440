"""Beam search in the engine: groups of sequences, selection of beams, their drafts."""
