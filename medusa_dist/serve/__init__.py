"""Ray Serve: replicas, tensor-parallel groups, autoscaling, metrics."""
