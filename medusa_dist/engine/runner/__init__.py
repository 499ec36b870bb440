"""Runs on every rank: executes plans, decides nothing."""
