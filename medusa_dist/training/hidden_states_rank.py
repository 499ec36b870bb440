"""HiddenStatesRank: one rank of the pass over the answers.

Owns the sequence of work on a rank, run by serve/rank.py as a Ray actor in place of EngineRank. Not here: the pass
(hidden_states.py), the group (serve/local_group.py).
With one rank it runs in the calling process. All ranks read the same answers in the same order, each with its part of
the model; only rank 0 keeps hidden states and writes the result.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import Store

from medusa_dist.engine.startup.process_group import choose_device, join_group, join_store, open_store
from medusa_dist.errors import ConfigError
from medusa_dist.model.fingerprint import fingerprint
from medusa_dist.model.load import load_model
from medusa_dist.model.source.resolve_model import model_folder
from medusa_dist.ops.dtypes import choose_dtype
from medusa_dist.tools.progress import ProgressText
from medusa_dist.training.hidden_states import collect, data_key, read_data, save_positions
from medusa_dist.training.hidden_states_config import HiddenStatesConfig

__all__ = ["STACK", "HiddenStatesRank", "build_rank", "join_store", "model_folder", "open_store"]
STACK = __name__


class HiddenStatesRank:
    """A rank without an engine. facts: bytes of its part of the model, seconds of its start-up."""

    engine = None

    def __init__(
        self,
        config: HiddenStatesConfig,
        folder: Path,
        rank: int = 0,
        store: Store | None = None,
        generation: int = 0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Raises ConfigError if this rank sees other answers or another model than the driver."""
        begin = time.perf_counter()
        self._config, self._progress = config, progress
        dtype = choose_dtype(config.dtype, torch.device("cpu"))
        found = fingerprint(folder)
        self._answers = read_data(config.answers, config.model, found).answers
        if data_key(self._answers, found, dtype, config.aux_layers, config.with_prompts) != config.key:
            raise ConfigError(f"rank {rank} sees other answers in {config.answers}, or another model, than the driver")
        device = choose_device(config)
        progress("connecting to the other ranks")
        parallel, _ = join_group(config, device, rank, store, generation)
        progress("loading the model")
        self._model = load_model(
            folder,
            dtype=dtype,
            device=device,
            parallel=parallel,
            trust_remote_code=config.trust_remote_code,
            aux_layers=config.aux_layers if rank == 0 else (),
        )
        seconds = {"load": round(time.perf_counter() - begin, 3)}
        self.facts: dict[str, Any] = {"weight_bytes": self._model.weight_bytes(), "seconds": seconds}

    @property
    def collective_seconds(self) -> float:
        """Wall time of this rank in collectives since its start."""
        return self._model.parallel.clock.seconds

    def follow(self) -> None:
        """Read all answers; rank 0 writes the result."""
        total, done = sum(len(answer.output_ids) for answer in self._answers), 0
        self._progress(ProgressText("reading the answers", done, total, "tokens"))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(ProgressText("reading the answers", done, total, "tokens"))

        places = collect(self._model, self._answers, advance, self._config.with_prompts)
        if places is not None:
            save_positions(places, self._config.target, self._config.key)


build_rank = HiddenStatesRank  # the RankFactory that serve/rank.py looks up in this module
