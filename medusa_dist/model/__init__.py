"""transformers models made ours: resolved, sharded, loaded."""
