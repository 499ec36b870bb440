"""Tokens to text: detokenizer, stop strings. No torch."""
