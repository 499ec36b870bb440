"""Peer engines for `bench`: which there are, and vLLM in a process of its own.

Owns the choice, and starting, calling and stopping vLLM. Not here: those in this process (local_peers.py), the
comparison (bench.py), the script inside vLLM's Python (vllm_script.py).
All get the same model and number of threads as our engine, decode greedily, and continue past end-of-sequence tokens.
"""

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from medusa_dist.bench.local_peers import Answers, LlamaCppPeer, Prompts, TransformersPeer, UnquantizedPeer
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM
from medusa_dist.model.source.resolve_model import model_folder

_START_S = 1800.0  # vLLM compiles its kernels when it starts
_ANSWER_S = 1800.0
_END_S = 30.0

NAMES = ("transformers", "vllm", "llama.cpp", "unquantized")
_BATCHED = {"vllm", "llama.cpp", "unquantized"}


@dataclass(frozen=True)
class PeerOptions:
    """Peers to compare with. python: of vLLM's environment. batches: for peers that batch. gguf: llama.cpp's file.

    Raises ConfigError for an unknown peer, and for vLLM or llama.cpp without what it needs.
    """

    names: tuple[str, ...] = ()
    python: str | None = None
    batches: tuple[int, ...] = (8, 32)
    gguf: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in NAMES]
        if unknown:
            raise ConfigError(f"--peer: {unknown[0]!r} is unknown; use one of {', '.join(NAMES)}")
        if "vllm" in self.names and self.python is None:
            raise ConfigError("--peer vllm requires --peer-python; set it to the Python of the environment with vLLM")
        if "llama.cpp" in self.names and self.gguf is None:
            raise ConfigError("--peer llama.cpp requires --peer-gguf; set it to a GGUF file of the same model")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that our engine must support for the comparison."""
        return self.batches if _BATCHED & {*self.names} else (1,)


class Peer(Protocol):
    """An engine to compare with. name: includes its version. batches: its batch sizes."""

    name: str
    batches: tuple[int, ...]

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts in one batch, with max_tokens tokens each."""

    def close(self) -> None:
        """Stop the peer."""


class VllmPeer:
    """vLLM's offline engine in a separate process. python: its executable. batches: e.g. (8, 32)."""

    def __init__(self, python: str, folder: Path, dtype: str, max_model_len: int, batches: tuple[int, ...]) -> None:
        self.batches = batches
        script = Path(__file__).with_name("vllm_script.py")
        try:
            self._process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=vllm_environment(os.environ, torch.get_num_threads()),
            )
        except OSError as error:
            raise ConfigError(f"--peer-python: {python} cannot be run: {error}") from error
        settings = {"model": str(folder), "dtype": dtype, "max_model_len": max_model_len, "max_num_seqs": max(batches)}
        try:
            self.name = f"vllm {self._ask(settings, _START_S)['version']}"
        except BaseException:
            self.close()
            raise

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts in one call, timed inside vLLM's process, so that the time excludes the pipes.

        The process is stopped between calls, because its spinning threads would slow down other measurements.
        """
        os.killpg(self._process.pid, signal.SIGCONT)
        said = self._ask({"prompts": [list(ids) for ids in prompts], "max_tokens": max_tokens}, _ANSWER_S)
        os.killpg(self._process.pid, signal.SIGSTOP)
        return Answers([tuple(tokens) for tokens in said["tokens"]], said["seconds"])

    def close(self) -> None:
        """Close its input, which ends the process; kill it after _END_S."""
        assert self._process.stdin is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has exited, with unread input in the pipe
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # it has child processes
            self._process.wait()

    def _ask(self, what: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise EngineError("vLLM has exited; see its output for the cause") from None
        # Each response is one line, so nothing else is left in the buffer.
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise EngineError(f"vLLM did not respond within {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise EngineError("vLLM has exited; see its output for the cause")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def open_peers(options: PeerOptions, llm: LLM, report: Callable[[str], None]) -> Iterator[list[Peer]]:
    """Start the peers with our engine's model folder; leaving the block stops them."""
    peers, folder = list[Peer](), model_folder(llm.config)
    with ExitStack() as stack:
        for name in dict.fromkeys(options.names):
            report(f"starting {name}")
            peers.append(_opened(name, options, llm, folder))
            stack.callback(peers[-1].close)
        yield peers


def _opened(name: str, options: PeerOptions, llm: LLM, folder: Path) -> Peer:
    if name == "transformers":
        return TransformersPeer(folder, getattr(torch, llm.facts["dtype"]), torch.device(llm.facts["device"]))
    if name == "unquantized":
        return UnquantizedPeer(llm, options.batches)
    if name == "llama.cpp":
        assert options.gguf is not None
        return LlamaCppPeer(options.gguf, llm, options.batches)
    assert options.python is not None
    return VllmPeer(options.python, folder, llm.facts["dtype"], llm.facts["max_model_len"], options.batches)


def vllm_environment(ours: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """Environment of vLLM's process: our number of threads, each on its own core, and no variables of our Python."""
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    kept = {key: value for key, value in ours.items() if not key.startswith(("PYTHON", "OMP_", "MKL_"))}
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "2"} | kept
