"""Published draft heads of any form: which form a folder holds, and reading it."""
