"""One file per offline command."""
