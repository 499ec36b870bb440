"""Step logs read and summarised, and drawings as files."""
