"""From a config to a running rank: groups, memory, heads, measurements."""
