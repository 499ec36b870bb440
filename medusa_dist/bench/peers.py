"""Other engines, made to decode the same prompts as ours: transformers in this process, vLLM in its own.

Owns how a peer is started, asked and ended. Not here: the comparison (bench.py), what runs inside vLLM's Python
(vllm_script.py).
Both get the same folder, dtype and threads as our engine, decode greedily and go on past the end-of-sequence token.
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
    """Which peers to compare with. python: of vLLM's environment. batches: at which vLLM is asked.

    Raises ConfigError for a name that is no peer, and for vLLM without its Python.
    """

    names: tuple[str, ...] = ()
    python: str | None = None
    batches: tuple[int, ...] = (8, 32)

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in NAMES]
        if unknown:
            raise ConfigError(f"--peer: {unknown[0]!r} is not one of {', '.join(NAMES)}")
        if "vllm" in self.names and self.python is None:
            raise ConfigError("--peer vllm: give the Python that vLLM is installed in with --peer-python")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that our engine must be able to run for the comparison."""
        return self.batches if "vllm" in self.names else (1,)


@dataclass(frozen=True)
class Answers:
    """What a peer made of a batch of prompts, and how long it took from first to last."""

    tokens: list[tuple[int, ...]]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return sum(len(tokens) for tokens in self.tokens) / self.seconds


class Peer(Protocol):
    """An engine to compare with. name: with its version. batches: what it is asked to decode at once."""

    name: str
    batches: tuple[int, ...]

    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """All prompts together, max_tokens each."""

    def close(self) -> None:
        """End it."""


class TransformersPeer:
    """`generate` of a plain transformers model, one prompt at a time: what one has without any server."""

    batches: tuple[int, ...] = (1,)

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.name = f"transformers {transformers.__version__}"
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        # Its own would end at the end-of-sequence token.
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        self._device = device

    @torch.inference_mode()
    def decode(self, prompts: Prompts, max_tokens: int) -> Answers:
        """One prompt after another."""
        tokens: list[tuple[int, ...]] = []
        begin = time.perf_counter()
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=self._device)
            out = self._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens)
            tokens.append(tuple(out[0, len(prompt) :].tolist()))
        return Answers(tokens, time.perf_counter() - begin)

    def close(self) -> None:
        """Give the memory back."""
        self._model = None


class VllmPeer:
    """vLLM's offline engine in a process of its own Python. python: its executable. batches: e.g. (8, 32)."""

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
        """All prompts in one call; its own clock is read, so pipes are not in the time.

        Between calls it is stopped: its threads wait by spinning, which would slow down whoever is measured next.
        """
        os.killpg(self._process.pid, signal.SIGCONT)
        said = self._ask({"prompts": [list(ids) for ids in prompts], "max_tokens": max_tokens}, _ANSWER_S)
        os.killpg(self._process.pid, signal.SIGSTOP)
        return Answers([tuple(tokens) for tokens in said["tokens"]], said["seconds"])

    def close(self) -> None:
        """Its input ends, and so does it; after a while by force."""
        assert self._process.stdin is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended, with a question still in the pipe
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # it has processes of its own
            self._process.wait()

    def _ask(self, what: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise EngineError("vLLM has ended; what it printed says why") from None
        # One line is one answer, so nothing waits in a buffer behind it.
        if not select.select([stdout], [], [], timeout_s)[0]:
            raise EngineError(f"vLLM did not answer within {timeout_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise EngineError("vLLM has ended; what it printed says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def open_peers(options: PeerOptions, llm: LLM, report: Callable[[str], None]) -> Iterator[list[Peer]]:
    """The peers, over our engine's own model folder; ended when the block is left."""
    config, peers, folder = llm.config, list[Peer](), model_folder(llm.config)
    with ExitStack() as stack:
        for name in dict.fromkeys(options.names):
            report(f"starting {name}")
            if name == "transformers":
                dtype, device = getattr(torch, config.dtype), torch.device(llm.facts["device"])
                peers.append(TransformersPeer(folder, dtype, device))
            else:
                assert options.python is not None
                longest = llm.facts["max_model_len"]
                peers.append(VllmPeer(options.python, folder, config.dtype, longest, options.batches))
            stack.callback(peers[-1].close)
        yield peers


def vllm_environment(ours: Mapping[str, str], num_threads: int) -> dict[str, str]:
    """For vLLM's process: as many threads as we have, each on a core of its own; none of our Python's paths."""
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    kept = {key: value for key, value in ours.items() if not key.startswith(("PYTHON", "OMP_", "MKL_"))}
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)), "VLLM_CPU_KVCACHE_SPACE": "2"} | kept
