"""Gate patterns whose convolutions have multiples of some number m of channels.

Processors compute channels in groups, and channels beyond the last full group cost as much as a
whole group. So in every gated node the number of open channels of each task is brought to a
multiple, and the number of shared channels too. A node whose width C is no multiple has a smaller
last group: the allowed counts are 0, m, 2m, ... and C.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def rounded(
    gates: Mapping[str, Tensor], alpha: Mapping[str, Tensor], *, multiple: int
) -> dict[str, Tensor]:
    """Change a pattern to a near one of allowed counts.

    The number of each task's open channels goes to the nearest allowed count, the lower of two, by
    opening the closed gates of the highest α or closing the open ones of the lowest. The shared
    channels are all but those that every task has open. Their number is then changed by exchanging
    which channels tasks open: to the nearest allowed count below or above, whichever loses less α.
    Where C is no multiple, some counts of tasks allow no count of the shared stream, whatever is
    exchanged: then the task with the most channels closes its last group, and so on.

    Args:
        gates: Gated node -> (T, C) bool, True where the task's channel is open.
        alpha: Gated node -> (T, C) logits.
        multiple: m, in channels; 1 changes nothing.

    Returns:
        Gated node -> (T, C) bool.
    """
    if multiple == 1:
        return {name: opened.clone() for name, opened in gates.items()}
    return {
        name: _rounded(opened, alpha[name].detach().to(opened.device).double(), multiple)
        for name, opened in gates.items()
    }


def allowed_counts(channels: int, multiple: int) -> list[int]:
    """List the counts of channels that are a multiple, and the count of all channels.

    >>> allowed_counts(20, 8)
    [0, 8, 16, 20]
    """
    return [*range(0, channels, multiple), channels]


def _rounded(opened: Tensor, alpha: Tensor, multiple: int) -> Tensor:
    channels = opened.shape[1]
    allowed = allowed_counts(channels, multiple)
    counts = [min(allowed, key=lambda n: (abs(n - count), n)) for count in opened.sum(1).tolist()]
    while not (reachable := _reachable(counts, allowed)):
        most = counts.index(max(counts))
        counts[most] = allowed[allowed.index(counts[most]) - 1]
    opened = _with_counts(opened, alpha, counts)
    common = int(opened.all(0).sum())
    nearest = {
        min((n for n in reachable if n >= common), default=reachable[-1]),
        max((n for n in reachable if n <= common), default=reachable[0]),
    }
    # Of equal losses the one with fewer shared channels, which costs less.
    tries = [_exchanged(opened, alpha, count) for count in sorted(nearest, reverse=True)]
    return max(tries, key=lambda pattern: float(alpha[pattern].sum()))


def _reachable(counts: list[int], allowed: list[int]) -> list[int]:
    """Numbers of channels open for all tasks, ascending, that allow the shared count."""
    channels, closed = allowed[-1], sum(allowed[-1] - count for count in counts)
    least, most = max(0, channels - closed), min(counts)
    return [n for n in sorted(channels - shared for shared in allowed) if least <= n <= most]


def _with_counts(opened: Tensor, alpha: Tensor, counts: list[int]) -> Tensor:
    """Open `counts` channels of each task: first the open ones, then by α."""
    order = alpha.argsort(dim=1, descending=True, stable=True)
    open_first = (
        opened.gather(1, order).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    )
    ranks = order.gather(1, open_first).argsort(1)
    return ranks < torch.tensor(counts, device=opened.device)[:, None]


def _exchanged(opened: Tensor, alpha: Tensor, common: int) -> Tensor:
    """Exchange open channels until `common` are open for all tasks, each time losing least α."""
    opened = opened.clone()
    while (now := int(opened.all(0).sum())) != common:
        (_close_common if now > common else _open_common)(opened, alpha)
    return opened


def _close_common(opened: Tensor, alpha: Tensor) -> None:
    """One task closes a channel open for all, and opens one closed for another task too."""
    full = opened.all(0)
    takes = ~opened & ((~opened).sum(0) > 1)
    left = alpha.where(full, torch.inf).min(1)
    taken = alpha.where(takes, -torch.inf).max(1)
    task = int((left.values - taken.values).argmin())
    opened[task, left.indices[task]] = False
    opened[task, taken.indices[task]] = True


def _open_common(opened: Tensor, alpha: Tensor) -> None:
    """Open one channel for all; tasks for which it was closed close one not open for all."""
    full = opened.all(0)
    left = alpha.where(opened & ~full, torch.inf).min(1)
    loss = (left.values[:, None] - alpha).where(~opened, 0).sum(0)
    channel = int(loss.where(~full, torch.inf).argmin())
    for task in (~opened[:, channel]).nonzero()[:, 0].tolist():
        opened[task, left.indices[task]] = False
    opened[:, channel] = True
