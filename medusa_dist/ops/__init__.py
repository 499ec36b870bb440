"""Tensor operations: sharded layers, noise, sampling."""
