"""`medusa-dist serve` as a process of its own, read and ended by tests."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

HANG_S = 300  # no claim about speed: only that a test which hangs comes to an end


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def without_ray(**more: str) -> dict[str, str]:
    """The environment of this process without what the tests set for their own Ray, and with `more`."""
    return {**{key: value for key, value in os.environ.items() if not key.startswith("RAY_")}, **more}


class Served:
    """`medusa-dist serve` in a session of its own. program: how medusa-dist is called; env: its whole environment."""

    def __init__(self, program: list[str], config: Path, folder: Path, env: dict[str, str]):
        self.process = subprocess.Popen(
            [*program, "serve", str(config)],
            cwd=folder,
            env={**env, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def read_until(self, text: str, seconds: float = HANG_S) -> None:
        deadline = time.monotonic() + seconds
        assert self.process.stdout is not None
        while text not in self.output and time.monotonic() < deadline:
            line = self.process.stdout.readline()
            if not line:
                break
            self.output += line
        assert text in self.output, self.output

    def offspring(self) -> set[int]:
        """Pids of all that descend from the command now."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.parent.name)] = int(fields[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {self.process.pid}

    def end(self, number: int = signal.SIGINT) -> None:
        """Signal it, and nothing that it started is left."""
        started = self.offspring()
        self.process.send_signal(number)
        self.process.wait(60)
        deadline = time.monotonic() + 15
        while (left := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left, left
