"""Peer engines for `bench`: which there are; vLLM and llama.cpp, each in a process of its own.

Owns the choice, and starting, calling and stopping those two. Not here: those in this process (local_peers.py), the
comparison (bench.py), what runs in their processes (vllm_script.py, llama_cpp_script.py).
All get the same model and number of threads as our engine, decode greedily, and continue past end-of-sequence tokens.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from medusa_dist.bench.local_peers import Answers, Prompts, TransformersPeer, UnquantizedPeer
from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM
from medusa_dist.model.source.resolve_model import model_folder

_START_S = 1800.0  # vLLM compiles its kernels when it starts
_ANSWER_S = 1800.0
_END_S = 30.0
_UNKNOWN = -1  # a token of an answer that is given as text

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


class PeerProcess:
    """An engine in a process of its own, which runs one of the scripts beside this file.

    In our process, OpenMP would count its threads with ours, and let ours sleep between products instead of spinning:
    ours became 1.5 times slower.
    """

    def __init__(self, title: str, script: str, python: str, environment: Mapping[str, str]) -> None:
        """title: in messages. Raises ConfigError if python cannot be run."""
        self._title = title
        try:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name(script))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            raise ConfigError(f"--peer-python: {python} cannot be run: {error}") from error

    def start(self, settings: Mapping[str, Any]) -> str:
        """Its version. On an error, its process is ended."""
        try:
            return str(self.ask(settings, _START_S)["version"])
        except BaseException:
            self.close()
            raise

    def decode_all(self, prompts: Prompts, max_tokens: int) -> dict[str, Any]:
        """Decode all prompts in one call, timed inside the process, so that the time excludes the pipes.

        The process is stopped between calls, because its spinning threads would slow down other measurements.
        """
        os.killpg(self._process.pid, signal.SIGCONT)
        said = self.ask({"prompts": [list(ids) for ids in prompts], "max_tokens": max_tokens}, _ANSWER_S)
        os.killpg(self._process.pid, signal.SIGSTOP)
        return said

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

    def ask(self, what: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Its answer. Raises EngineError if there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise EngineError(f"{self._title} has exited; see its output for the cause") from None
        # Each response is one line, so nothing else is left in the buffer.
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise EngineError(f"{self._title} did not respond within {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise EngineError(f"{self._title} has exited; see its output for the cause")
        answer: dict[str, Any] = json.loads(line)
        return answer


class VllmPeer(PeerProcess):
    """vLLM's offline engine. python: its executable. batches: e.g. (8, 32)."""

    def __init__(self, python: str, folder: Path, dtype: str, max_model_len: int, batches: tuple[int, ...]) -> None:
        super().__init__("vLLM", "vllm_script.py", python, vllm_environment(os.environ, torch.get_num_threads()))
        self.batches = batches
        settings = {"model": str(folder), "dtype": dtype, "max_model_len": max_model_len, "max_num_seqs": max(batches)}
        self.name = f"vllm {self.start(settings)}"

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts in one batch, with max_tokens tokens each."""
        said = self.decode_all(prompts, max_tokens)
        return Answers([tuple(tokens) for tokens in said["tokens"]], said["seconds"])


class LlamaCppPeer(PeerProcess):
    """llama.cpp's server, without HTTP, by the package xllamacpp.

    Its answers are text, so their tokens are what our tokenizer makes of it.
    """

    def __init__(self, gguf: Path, llm: LLM, batches: tuple[int, ...]) -> None:
        """gguf: the same model in any of llama.cpp's types. Raises ConfigError without the package or the file."""
        if not gguf.is_file():
            raise ConfigError(f"--peer-gguf: there is no file {gguf}")
        if find_spec("xllamacpp") is None:
            raise ConfigError("--peer llama.cpp requires the package xllamacpp: pip install xllamacpp")
        super().__init__("llama.cpp", "llama_cpp_script.py", sys.executable, os.environ)
        self.batches, self._tokenizer = batches, llm.tokenizer
        sizes = {"max_model_len": llm.facts["max_model_len"], "max_num_seqs": max(batches)}
        version = self.start({"gguf": str(gguf), "num_threads": torch.get_num_threads(), **sizes})
        self.name = f"llama.cpp {version} ({gguf.name})"

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts in one batch, with max_tokens tokens each."""
        said = self.decode_all(prompts, max_tokens)
        ids = [self._tokenizer.encode(text, add_special_tokens=False)[:max_tokens] for text in said["texts"]]
        return Answers([(*found, *[_UNKNOWN] * (max_tokens - len(found))) for found in ids], said["seconds"])


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
