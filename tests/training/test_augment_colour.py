"""Colours change as torchvision changes them, for whole batches at once."""

import pytest
import torch
import torchvision.transforms.functional as torchvision
from torch import Tensor

from gatesearch.training import colour
from gatesearch.training.colour import jitter

SEED = 5


def images(count: int = 8, size: tuple[int, int] = (24, 32)) -> Tensor:
    """Random images; the last are grey, black, white, and of saturated colours."""
    batch = torch.randint(
        256, (count, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    batch[-1] = batch[-1, :1]
    batch[-2] = 0
    batch[-3] = 255
    batch[-4] = (batch[-4] > 127) * 255
    return batch


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("brightness", [0, 0.3, 0.7, 1, 1.3, 1.7, 2, 0.5]),
        ("contrast", [0, 0.3, 0.7, 1, 1.3, 1.7, 2, 0.5]),
        ("saturation", [0, 0.3, 0.7, 1, 1.3, 1.7, 2, 0.5]),
        ("hue", [-0.5, -0.3, -0.1, 0, 0.05, 0.2, 0.4, 0.5]),
    ],
)
@pytest.mark.parametrize("shift", range(8))
def test_each_change_equals_torchvision(name: str, amounts: list[float], shift: int) -> None:
    batch = images()
    amounts = amounts[shift:] + amounts[:shift]
    theirs = getattr(torchvision, f"adjust_{name}")
    ours = getattr(colour, f"adjust_{name}")(batch.float(), torch.tensor(amounts))
    expected = [theirs(image / 255, float(a)) for image, a in zip(batch, amounts, strict=True)]
    torch.testing.assert_close(ours / 255, torch.stack(expected), atol=1e-5, rtol=0)
    # of bytes they cut off fractions, of the grey they compare with and of the result
    expected = [theirs(image, float(a)) for image, a in zip(batch, amounts, strict=True)]
    assert (ours - torch.stack(expected).float()).abs().max() < 2


def test_all_changes_follow_each_other_in_the_order_drawn() -> None:
    batch = images()
    options = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.2}
    orders = set()
    for seed in range(20):
        draws = torch.Generator().manual_seed(seed)
        order = torch.randperm(4, generator=draws).tolist()
        expected = batch / 255
        for i in order:
            name, most = list(options.items())[i]
            low, high = (-most, most) if name == "hue" else (1 - most, 1 + most)
            amounts = low + (high - low) * torch.rand(len(batch), generator=draws)
            change = getattr(torchvision, f"adjust_{name}")
            pairs = zip(expected, amounts.tolist(), strict=True)
            expected = torch.stack([change(image, amount) for image, amount in pairs])
        found = jitter(batch, generator=torch.Generator().manual_seed(seed), **options)
        torch.testing.assert_close(found / 255, expected, atol=2e-5, rtol=0)
        orders.add(tuple(order))
    assert len(orders) > 8


def test_amounts_are_drawn_from_the_whole_range_for_each_sample() -> None:
    grey = torch.full((500, 3, 1, 1), 50, dtype=torch.uint8)
    factors = jitter(grey, brightness=0.4, generator=torch.Generator().manual_seed(0)) / 50
    assert factors.min() == pytest.approx(0.6, abs=0.01)
    assert factors.max() == pytest.approx(1.4, abs=0.01)
    assert factors.mean() == pytest.approx(1, abs=0.03)
    strong = jitter(grey, brightness=3.0, generator=torch.Generator().manual_seed(0)) / 50
    assert strong.mean() == pytest.approx(2, abs=0.15)  # from 0 on, not from -2
    assert 3.9 < strong.max() <= 4


def test_the_image_given_is_not_changed_and_the_result_in_range() -> None:
    for batch in (images(), images().float()):
        before = batch.clone()
        out = jitter(
            batch, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5,
            generator=torch.Generator().manual_seed(SEED),
        )  # fmt: skip
        assert torch.equal(batch, before)
        assert out.dtype == torch.float32
        assert out.min() >= 0
        assert out.max() <= 255


def test_a_change_by_nothing_changes_nothing() -> None:
    assert torch.equal(jitter(images(), generator=torch.Generator()), images().float())
