"""The commands that show what happens, as a user calls them."""

import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medusa_dist.cli.main import app
from medusa_dist.engine.steps.log import LoggedModel, StepLog
from tests.support.exposition import exposition
from tests.support.step_records import step, tree
from tests.support.tiny_tool_llm import save_llm, service_config


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_explain_draws_a_named_tree() -> None:
    done = run("explain", "--tree", "chain4")
    assert done.exit_code == 0 and "[0, 0, 0, 0] best guess of head 4" in done.output
    assert "4 nodes, 4 deep, by depth 1/1/1/1" in done.output


def test_explain_draws_the_tree_of_a_config(tmp_path: Path) -> None:
    save_llm(tmp_path)
    file = tmp_path / "serve.yaml"
    file.write_text(service_config(tmp_path, speculation="{mode: static, tree: [[0], [1], [1, 0]]}"))
    done = run("explain", str(file))
    assert done.exit_code == 0 and "speculation.tree" in done.output and "no accuracies for it" in done.output


def test_explain_reads_a_step_log_and_writes_its_drawing(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", LoggedModel("m", str(tmp_path / "gone"), "medusa: 2 heads", 0, 1))
    log(replace(step(tree((0, 2))), step=3))
    done = run("explain", str(log.path), "--html", str(tmp_path / "out.html"))
    assert done.exit_code == 0, done.output
    assert "Where drafts were cut" in done.output and "✓ '#4'" in done.output and "shown by their ids" in done.output
    html = (tmp_path / "out.html").read_text()
    assert "step 3: most drafts accepted" in html and "Where drafts were cut" in html
    assert run("explain", str(log.path), "--step", "4").output.strip().endswith("has no step 4; it has 3 to 3")


def test_explain_writes_a_static_tree(tmp_path: Path) -> None:
    done = run("explain", "--tree", "chain4", "--html", str(tmp_path / "out.html"))
    assert done.exit_code == 0 and "[0, 0, 0, 0]" in (tmp_path / "out.html").read_text()


@pytest.mark.usefixtures("one_thread")
def test_generate_and_explain_draw_the_tree_of_a_real_step(tmp_path: Path) -> None:
    save_llm(tmp_path)
    model = ("--model", str(tmp_path), "--heads", str(tmp_path / "heads"))
    prompt = ("--prompt", "abcabcabcabcabc", "--max-tokens", "40")
    done = run("generate", *model, *prompt, "--no-chat", "--speculation", "7")
    assert done.exit_code == 0, done.output
    assert "the model's own choice" in done.output and "✓ '" in done.output
    assert "own choice" not in run("generate", *model, *prompt, "--no-chat", "--no-tree").output
    done = run("explain", *model, *prompt, "--html", str(tmp_path / "out.html"))
    assert done.exit_code == 0 and "the model's own choice" in done.output
    assert (tmp_path / "out.html").read_text().count("<svg ") == done.output.count("own choice")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("explain", "--tree", "oak"), "unknown tree 'oak'"),
        (("explain", "gone.jsonl", "--tree", "chain4"), "--prompt and --tree cannot be combined with a step log"),
        (("explain", "--step", "3"), "--step is a step of a step log"),
        (("explain", "gone.jsonl"), "gone.jsonl cannot be read: No such file"),
        (("explain", "--tree", "chain4", "--html", "gone/out.html"), "--html: gone/out.html cannot be written"),
    ],
)
def test_wrong_argument_is_one_error_line_without_a_traceback(arguments: tuple[str, ...], error: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1 and error in done.output and "Traceback" not in done.output


def test_top_prints_lines_where_there_is_no_terminal_and_explains_a_wrong_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gone = run("top", "--address", f"127.0.0.1:{port}")
    assert gone.exit_code == 1 and "is the service up?" in gone.output and "Traceback" not in gone.output

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(exposition({"requests": 7, "group_up": 1}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Metrics) as server:
        threading.Thread(target=server.serve_forever).start()
        done = run("top", "--address", f"127.0.0.1:{port}", "--interval", "0.1", "-n", "2")
        server.shutdown()
    assert done.exit_code == 0 and len(done.output.splitlines()) == 2 and "in all 7" in done.output
