"""`medusa-dist batch`: processes a file of requests."""
