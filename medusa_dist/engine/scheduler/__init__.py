"""Which sequences run in a step, and the plan that is broadcast to all ranks."""
