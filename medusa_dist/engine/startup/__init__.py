"""Start-up of a rank: process groups, memory sizing, heads, measurements."""
