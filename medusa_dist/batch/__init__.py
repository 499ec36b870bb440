"""`medusa-dist batch`: a file of requests, answered line by line."""
