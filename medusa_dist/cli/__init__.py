"""Command-line interface `medusa-dist`."""
