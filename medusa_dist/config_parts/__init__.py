"""Groups of config keys with files of their own, and the base of all groups."""
