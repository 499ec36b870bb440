"""Peer engines for `bench`: transformers in this process, vLLM in its own.

Owns starting, calling and stopping a peer. Not here: the comparison (bench.py), the script inside vLLM's Python
(vllm_script.py).
Both get the same folder, dtype and threads as our engine, decode greedily, and continue past end-of-sequence tokens.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from medusa_dist.errors import ConfigError, EngineError
from medusa_dist.llm import LLM
from medusa_dist.model.source.resolve_model import model_folder

_START_S = 1800.0  # vLLM compiles its kernels when it starts
_ANSWER_S = 1800.0
_END_S = 30.0

Prompts = Sequence[Sequence[int]]
NAMES = ("transformers", "vllm")


@dataclass(frozen=True)
class PeerOptions:
    """Peers to compare with. python: of vLLM's environment. batches: batch sizes for vLLM.

    Raises ConfigError for an unknown peer, and for vLLM without its Python.
    """

    names: tuple[str, ...] = ()
    python: str | None = None
    batches: tuple[int, ...] = (8, 32)

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in NAMES]
        if unknown:
            raise ConfigError(f"--peer: {unknown[0]!r} is unknown; use one of {', '.join(NAMES)}")
        if "vllm" in self.names and self.python is None:
            raise ConfigError("--peer vllm requires --peer-python; set it to the Python of the environment with vLLM")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that our engine must support for the comparison."""
        return self.batches if "vllm" in self.names else (1,)


@dataclass(frozen=True)
class Answers:
    """A peer's answers to a batch of prompts, and the time for the whole batch."""

    tokens: list[tuple[int, ...]]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return sum(len(tokens) for tokens in self.tokens) / self.seconds


class Peer(Protocol):
    """An engine to compare with. name: includes its version. batches: its batch sizes."""

    name: str
    batches: tuple[int, ...]

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode all prompts in one batch, with max_tokens tokens each."""

    def close(self) -> None:
        """Stop the peer."""


class TransformersPeer:
    """`generate` of a plain transformers model, one prompt at a time: the baseline without a server."""

    batches: tuple[int, ...] = (1,)

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.name = f"transformers {transformers.__version__}"
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        # The model's own config would stop at the end-of-sequence token.
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        self._device = device

    @torch.inference_mode()
    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """Decode the prompts one after another."""
        tokens: list[tuple[int, ...]] = []
        begin = time.perf_counter()
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=self._device)
            out = self._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens)
            tokens.append(tuple(out[0, len(prompt) :].tolist()))
        return Answers(tokens, time.perf_counter() - begin)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None


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
            if name == "transformers":
                dtype, device = getattr(torch, llm.facts["dtype"]), torch.device(llm.facts["device"])
                peers.append(TransformersPeer(folder, dtype, device))
            else:
                assert options.python is not None
                longest = llm.facts["max_model_len"]
                peers.append(VllmPeer(options.python, folder, llm.facts["dtype"], longest, options.batches))
            stack.callback(peers[-1].close)
        yield peers


def vllm_environment(ours: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """Environment of vLLM's process: our number of threads, each on its own core, and no variables of our Python."""
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    kept = {key: value for key, value in ours.items() if not key.startswith(("PYTHON", "OMP_", "MKL_"))}
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "2"} | kept
