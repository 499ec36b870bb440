"""Models from transformers: resolved, checked, sharded, loaded."""
