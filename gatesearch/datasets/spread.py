"""Choose some of many items, the same each time."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """Choose `count` items at even distances; all of them for 0, or for more than there are.

    >>> spread_evenly(range(10), 4)
    [0, 2, 5, 7]
    """
    count = len(items) if count == 0 else min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
