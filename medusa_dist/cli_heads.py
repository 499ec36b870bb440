"""The commands around heads: get them, judge them, shape their trees.

Owns their words and what they print; cli.py hangs them beside its own. Not here: what they do (jobs/). Imports are
inside the commands, so that `medusa-dist --help` answers at once.
"""

import typer

app = typer.Typer()
