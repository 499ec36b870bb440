"""One model's engine: schedule, verify, accept, emit, draft."""
