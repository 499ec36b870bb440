"""What every rank runs: executes plans, decides nothing."""
