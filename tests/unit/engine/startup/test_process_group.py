"""Ranks on different machines do not mean different things by `dtype: auto`."""

import pytest
import torch

from medusa_dist.engine.startup.process_group import agree_on_dtype
from medusa_dist.errors import ConfigError
from medusa_dist.ops.tp_group import TPGroup

CPU = torch.device("cpu")


class GroupWithOldMachine(TPGroup):
    """Its other rank means float32, which has the number 0, and so has its negative."""

    def all_reduce_min(self, value):
        return min(value, 0)


def test_ranks_whose_machines_mean_different_dtypes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert agree_on_dtype("auto", CPU, TPGroup()) == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype: auto means float32 and bfloat16 on the ranks' different machines"):
        agree_on_dtype("auto", CPU, GroupWithOldMachine())
