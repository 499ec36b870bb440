"""The command line, `medusa-dist`."""
