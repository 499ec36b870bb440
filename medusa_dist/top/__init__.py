"""`medusa-dist top`: live numbers of a service in a terminal."""
