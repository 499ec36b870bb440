"""Tensors only: sharded layers, attention, KV rows, noise, sampling."""
