"""States of all random number generators that a training may draw from."""

import random
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor


class RandomStates(TypedDict):
    """States of torch, of the device, of numpy and of Python, as a checkpoint holds them."""

    torch: Tensor
    numpy: list[Any]
    python: list[Any]
    device: NotRequired[Tensor]


def random_states(device: str) -> RandomStates:
    """Copy the states of all generators: tensors, numbers, and lists of them.

    Args:
        device: `cpu`, or another whose generator counts too.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states: RandomStates = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }
    if device != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random_states(states: RandomStates, device: str) -> None:
    """Put all generators into the states that `random_states` returned."""
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if device != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"])
