"""Every command in the documentation works as it stands there: parsed by its own program, and run where it is cheap.

The slow test runs what needs a service, with the ports of the pages. What cannot run here is listed with a reason.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli
from typer.testing import CliRunner

from medusa_dist.cli.main import app
from tests.support.batch_lines import records, write
from tests.support.doc_commands import COMMANDS, ROOT, DocCommand
from tests.support.served import Served, is_free, without_ray

PROGRAMS = Path(sys.executable).parent
CLICK = {"medusa-dist": typer.main.get_command(app), "ray": ray_cli, "serve": serve_cli}
OUTSIDE = {
    "docker": "containers do not run in the tests",
    "ssh": "another machine",
    "pip": "tests/end_to_end/test_wheel.py installs",
    "python": "a module of ours, found below; it needs Triton: tests/unit/check/test_gpu_kernels.py",
    "python3": "make does the same, see tests/end_to_end/test_makefile.py",
    "export": "checked with the command that needs it",
    "cluster/start_head.sh": "tests/end_to_end/test_cluster_files.py",
    "curl": "run by the slow test where the page has a whole call",
}


def ids(command: DocCommand) -> str:
    return f"{command.page}: {command.text[:60]}"


def parse(program: Any, words: list[str]) -> None:
    """As the program parses them, without running it. Words that only name a command are no call.

    program: a command of click, or of the click inside typer, which has types of its own.
    """
    commands = getattr(program, "commands", None)
    if commands and words and not words[0].startswith("-"):
        assert words[0] in commands, f"{words[0]} is no command"
        parse(commands[words[0]], words[1:])
    elif words and words[0] in ("--help", "--version", "--install-completion"):
        options = [*program.params, *program.make_context("doc", [], resilient_parsing=True).command.params]
        assert words[0] == "--help" or any(words[0] in option.opts for option in options)
    elif words:
        program.make_context("doc", [word.strip("[]") for word in words])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program in CLICK], ids=ids)
def test_command_of_a_page_is_accepted_by_its_program(command):
    words = command.words
    parse(CLICK[command.program], words[words.index(command.program) + 1 :])
    if command.ours is not None:
        parse(CLICK["medusa-dist"], command.ours)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program == "make"], ids=ids)
def test_make_command_of_a_page_has_its_target_and_variables(command):
    words = command.words[command.words.index("make") + 1 :]
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:.*## "
        assert re.search(pattern, makefile, re.MULTILINE), f"{word} is not in the Makefile"


def test_every_command_is_of_a_known_program_and_names_files_that_exist():
    assert len(COMMANDS) > 80
    for command in COMMANDS:
        assert command.program in {*CLICK, "make", *OUTSIDE}, command
        for word in re.findall(r"(?:serve_configs|cluster)/[\w./-]+", command.text):
            assert (ROOT / word).exists(), command
        for module in re.findall(r"^python -m ([\w.]+)", command.text):
            assert importlib.util.find_spec(module) is not None, command


def shell(text: str, folder: Path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess:
    """A user's shell in an environment that has medusa-dist and ray."""
    path = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-ec", text],
        cwd=folder,
        env={**without_ray(), **path, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def found(program: str, part: str) -> str:
    """The command of the pages that has this part."""
    return next(c.text for c in COMMANDS if c.program == program and part in c.text)


@pytest.mark.parametrize(
    "words", ["--help", "--version", *(f"{name} --help" for name in CLICK["medusa-dist"].commands)]
)
def test_help_of_each_command_is_printed(words):
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0 and len(done.stdout) > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench --no-such-option 1", "No such option"),
        ("bench --pairs one", "valid integer"),
        ("batch only.jsonl", "Missing (argument|parameter)"),
        ("nothing", "nothing is no command"),
        ("--nothing", "No such option"),
    ],
)
def test_wrong_command_on_a_page_would_be_found(words, message):
    with pytest.raises(Exception, match=message):
        parse(CLICK["medusa-dist"], words.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the pages assume: a checkout's configs and a batch file."""
    for name in ("serve_configs", "medusa_dist"):
        (tmp_path / name).symlink_to(ROOT / name)
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Say one thing."}], "max_tokens": 4}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    write(tmp_path / "in.jsonl", [{"custom_id": f"line-{i}", **line} for i in range(3)])
    return tmp_path


def check_answers(path: Path) -> None:
    assert sorted(r["custom_id"] for r in records(path)) == ["line-0", "line-1", "line-2"]
    assert all(r["response"]["status_code"] == 200 for r in records(path))
    path.unlink()


@pytest.mark.slow
@pytest.mark.real
def test_commands_that_need_a_service_run_as_they_stand_on_the_pages(folder):
    """The service is started as `make serve` does, without its programs in PATH."""
    if not all(map(is_free, (8000, 8265, 52365))):
        pytest.skip("ports of the pages (8000, 8265) or of Ray (52365, for jobs) are in use")
    exports = found("export", "RAY_AUTH_MODE=token")
    served = Served([str(PROGRAMS / "medusa-dist")], folder / "serve_configs/smollm2-cpu.yaml", folder, without_ray())
    try:
        served.read_until("Ctrl-C to stop")
        for program, part in (("curl", '"Hello"'), ("curl", "response_format")):
            done = shell(found(program, part), folder)
            assert json.loads(done.stdout)["choices"], done
        done = shell(found("medusa-dist", "batch in.jsonl out.jsonl --address"), folder)
        assert done.returncode == 0, done.stderr
        check_answers(folder / "out.jsonl")
        joins = next(c.text for c in COMMANDS if c.text == "medusa-dist batch in.jsonl out.jsonl")
        done = shell(f"{exports}\n{joins}", folder)
        assert done.returncode == 0, done.stderr
        check_answers(folder / "out.jsonl")
        submits = found("ray", "job submit --").replace("/shared", str(folder))
        done = shell(f"{exports}\n{submits}", folder)
        assert done.returncode == 0, done.stdout + done.stderr
        check_answers(folder / "out.jsonl")
        told = re.search(r"export RAY_AUTH_MODE=token.*", served.output)
        assert told is not None
        for command in ("serve status", "ray status", "ray list actors"):
            done = shell(f"{told[0]}\n{command}", folder)
            assert done.returncode == 0 and done.stdout, (command, done)
    finally:
        served.end(signal.SIGTERM)
    done = shell(found("medusa-dist", "batch in.jsonl out.jsonl --config"), folder)
    assert done.returncode == 0, done.stderr
    check_answers(folder / "out.jsonl")
