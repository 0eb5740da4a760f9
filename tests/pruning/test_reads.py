"""What is done in inference only gives what torch's own operators give."""

import pytest
import torch
import torch.nn.functional as F

from gatesearch.pruning.reads import _chosen, pooled

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (5, 4), (6, 7), (9, 9)])
def test_pooling_is_torchs(size, memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 3, *size) - 3).contiguous(memory_format=memory_format)
    x[0, 0, 0, 0] = float("nan")
    with torch.inference_mode():
        ours = pooled(x)
    theirs = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    assert torch.equal(ours.nan_to_num(99), theirs.nan_to_num(99))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("count", [1, 2])
def test_choosing_keeps_values_and_memory_format(count, memory_format) -> None:
    x = torch.randn(count, 5, 3, 4).contiguous(memory_format=memory_format)
    index = torch.tensor([0, 3, 4])
    with torch.inference_mode():
        chosen = _chosen(x, index)
    assert torch.equal(chosen, x[:, index])
    assert chosen.is_contiguous(memory_format=memory_format)
