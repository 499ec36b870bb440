"""Lookup: drafts copied from earlier text of the same sequence, for models with and without heads"""
