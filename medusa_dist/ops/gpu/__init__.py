"""Triton kernels, each with its launch; every kernel has an oracle in torch or numpy in the tests."""
