"""Gate patterns as text: hexadecimal digits, a bit for each channel."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def pattern_as_text(gates: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Write a gate pattern as `Result.gates`.

    Args:
        gates: Gated node -> (T, C) bool, True where the task has a channel of its own.

    >>> pattern_as_text({"conv1": torch.tensor([[True, False, False, False, True]])})
    {'conv1': ('11',)}
    """
    return {
        name: tuple(_digits(row) for row in is_open.cpu().bool().tolist())
        for name, is_open in gates.items()
    }


def pattern_of_text(
    text: Mapping[str, Sequence[str]], channels: Mapping[str, int]
) -> dict[str, Tensor]:
    """Read a gate pattern.

    Args:
        text: Gated node -> digits of each task.
        channels: Gated node -> C.

    Returns:
        Gated node -> (T, C) bool.

    Raises:
        ValueError: The text has other nodes or more channels.

    >>> pattern_of_text({"conv1": ["11"]}, {"conv1": 5})["conv1"].int().tolist()
    [[1, 0, 0, 0, 1]]
    """
    if text.keys() != channels.keys():
        raise ValueError(
            f"a gate pattern must have the nodes {', '.join(channels)}, found {', '.join(text)}"
        )
    return {
        name: torch.tensor([_bits(digits, channels[name]) for digits in rows], device="cpu")
        for name, rows in text.items()
    }


def _digits(row: Sequence[bool]) -> str:
    bits = "".join("1" if is_open else "0" for is_open in row)
    return f"{int(bits, 2):0{-(-len(row) // 4)}x}"


def _bits(digits: str, channels: int) -> list[bool]:
    bits = f"{int(digits, 16):0{channels}b}"
    if len(bits) != channels:
        raise ValueError(f"a gate pattern must have {channels} channels, found {len(bits)}")
    return [bit == "1" for bit in bits]
