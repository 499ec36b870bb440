"""A stack whose ranks have no engine: they do one job and end. The model's name says how it goes, as in "job:dies"."""

import os
import time
from pathlib import Path
from typing import Any

from medusa_dist.config import Config
from medusa_dist.errors import ModelError
from tests.support.fake_stack import join_store, open_store

__all__ = ["EngineRank", "build_rank", "join_store", "model_folder", "open_store"]


def model_folder(config: Config) -> Path:
    return Path("/nowhere")


class EngineRank:
    engine = None

    def __init__(self, config: Any, folder: Path, rank: int, store: Any, generation: int, progress: Any) -> None:
        self._how, self._rank, self._progress = config.model.removeprefix("job:"), rank, progress
        self._links = [store.listener.accept()[0]] if rank == 0 else store.links
        self.facts = {"seconds": {}}

    def follow(self) -> None:
        self._progress("at work")
        if self._rank == 1:
            time.sleep(1.5)
            if self._how == "dies":
                os._exit(3)
            if self._how == "refuses":
                raise ModelError("this model is no good")
            if self._how == "fails":
                raise ValueError("a bug")
            self._links[0].sendall(b"d")
        elif not self._links[0].recv(1):  # rank 0 waits for rank 1, as in a collective
            raise ConnectionError("connection closed by peer")


build_rank = EngineRank
