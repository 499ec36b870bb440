"""`medusa-dist check`: whether a Serve config can work, without loading weights."""
