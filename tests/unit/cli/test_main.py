import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medusa_dist import __version__
from medusa_dist.cli.main import app


def test_version_option_prints_the_version_alone():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"medusa-dist {__version__}\n")


def complete(shell, words):
    """What a shell is told for words typed so far."""
    env = {"_MEDUSA_DIST_COMPLETE": f"complete_{shell}", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    env |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return CliRunner().invoke(app, [], prog_name="medusa-dist", env=env).output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected", "others"),
    [("medusa-dist se", "serve", ["batch", "bench"]), ("medusa-dist batch --over", "--overwrite", ["--resume"])],
)
def test_completion_offers_matching_commands_and_options(shell, words, expected, others):
    output = complete(shell, words)
    assert expected in output and not any(other in output for other in others)


def test_show_completion_prints_a_script_for_the_parent_shell():
    """Typer asks the parent process which shell it is."""
    program = f"{sys.executable} -c 'from medusa_dist.cli.main import app; app(prog_name=\"medusa-dist\")'"
    command = ["bash", "-c", f"{program} --show-completion; true"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    assert "_MEDUSA_DIST_COMPLETE=complete_bash" in done.stdout and "medusa-dist" in done.stdout, done
