"""transformers models made ours: where they come from, how they are cut and read."""
