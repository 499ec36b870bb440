"""Ray Serve: the front, the tensor-parallel group, autoscaling, metrics."""
