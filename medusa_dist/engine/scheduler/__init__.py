"""Who runs in a step, and the plan that tells all ranks."""
