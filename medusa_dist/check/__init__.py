"""`medusa-dist check`: validates a Serve config without loading weights."""
