"""What `dtype: auto` means on which device."""

import pytest
import torch

from medusa_dist.ops.dtypes import choose_dtype, dtype_name

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "is_fast", "dtype"),
    [
        (CPU, True, torch.bfloat16),
        (CPU, False, torch.float32),
        (GPU, True, torch.bfloat16),
        (GPU, False, torch.float16),
    ],
)
def test_auto_is_bfloat16_where_the_device_multiplies_it(monkeypatch, device, is_fast, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_fast)
    assert choose_dtype("auto", device) == dtype
    assert choose_dtype("float16", device) == torch.float16
    assert dtype_name(dtype) == str(dtype)[len("torch.") :]
