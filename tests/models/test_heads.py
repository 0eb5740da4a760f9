"""Heads: shapes, and the pooled head by hand."""

import pytest
import torch

from gatesearch.models.heads import HEADS, PER_IMAGE, Heads, PooledHead


def test_a_pooled_head_is_a_linear_map_of_the_mean_over_pixels() -> None:
    head = PooledHead(2, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[3.0, -1.0]]))
        head.linear.bias.fill_(0.5)
    # means 2.5 and 2 of four pixels
    features = torch.tensor([[[1.0, 2], [3, 4]], [[0, 0], [0, 8]]])[None]
    assert head(features).tolist() == [[3 * 2.5 - 2 + 0.5]]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("size", [(32, 40), (48, 16)])
def test_every_head_predicts_in_float32_whatever_the_size(kind, size) -> None:
    heads = Heads({"x": HEADS[kind](6, 4, 3).eval()})
    features = torch.randn(2, 6, size[0] // 8, size[1] // 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = heads.call_head("x", features, size)
    assert prediction.shape == (2, 3, *(() if kind in PER_IMAGE else size))
    assert prediction.dtype == torch.float32
