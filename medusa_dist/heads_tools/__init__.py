"""Commands around heads: convert, evaluate, tune, explain."""
