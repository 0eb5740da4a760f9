"""Round gate patterns, so that the channels of their convolutions are multiples of a number m.

Processors compute channels in groups, and channels beyond the last full group cost as much as a
whole group. So in every gated node the number of open channels of each task is rounded to a
multiple of m, and the number of shared channels too. If the node's width C is no multiple of m, its
last group is smaller: the allowed counts are 0, m, 2m, ... and C. Where channels share a gate, as
those of an attention head do, the counts are those of whole units instead, which is how kernels
compute them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gatesearch.models.channel_units import PER_CHANNEL, Units, unit_index


def rounded(
    gates: Mapping[str, Tensor],
    alpha: Mapping[str, Tensor],
    *,
    multiple: int,
    units: Units = PER_CHANNEL,
) -> dict[str, Tensor]:
    """Change a pattern to a similar one of allowed counts.

    First, the number of each task's open channels is rounded to the nearest allowed count (the
    lower of two equally near ones), by opening the closed gates of the highest α or closing the
    open gates of the lowest α. The shared channels are all channels but those that every task has
    open. Their number is then brought to the nearest allowed count below or above, whichever loses
    less α, by exchanging which channels the tasks open. If C is no multiple of m, some counts of
    the tasks allow no such exchange. Then the task with the most open channels closes its last
    group, until one is possible.

    Args:
        gates: Gated node -> (T, C) bool, True where the task's channel is open.
        alpha: Gated node -> (T, C) logits.
        multiple: m, in channels; 1 changes nothing.
        units: Gated node -> (C,) number of the gate of each channel. Nodes with shared gates are
            not changed: their patterns open whole units already.

    Returns:
        Gated node -> (T, C) bool.
    """
    if multiple == 1:
        return {name: opened.clone() for name, opened in gates.items()}
    return {
        name: _rounded(opened, alpha[name].detach().to(opened.device).double(), multiple)
        if unit_index(units, name) is None
        else opened.clone()
        for name, opened in gates.items()
    }


def allowed_counts(channels: int, multiple: int) -> list[int]:
    """List the numbers of channels that are multiples, and the number of all channels.

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
    # If both lose the same, fewer shared channels win, because they cost less.
    tries = [_exchanged(opened, alpha, count) for count in sorted(nearest, reverse=True)]
    return max(tries, key=lambda pattern: float(alpha[pattern].sum()))


def _reachable(counts: list[int], allowed: list[int]) -> list[int]:
    """List the numbers of channels open for all tasks that give an allowed count of shared ones.

    Args:
        counts: Number of open channels of each task.
        allowed: Allowed counts, ascending; the last is all channels.

    Returns:
        Ascending numbers; empty if there is none.
    """
    channels, closed = allowed[-1], sum(allowed[-1] - count for count in counts)
    least, most = max(0, channels - closed), min(counts)
    return [n for n in sorted(channels - shared for shared in allowed) if least <= n <= most]


def _with_counts(opened: Tensor, alpha: Tensor, counts: list[int]) -> Tensor:
    """Open `counts` channels of each task: those open already first, then by descending α."""
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
    """Let one task close a channel open for all tasks, and open one closed for another task too."""
    open_for_all = opened.all(0)
    candidates = ~opened & ((~opened).sum(0) > 1)
    to_close = alpha.where(open_for_all, torch.inf).min(1)
    to_open = alpha.where(candidates, -torch.inf).max(1)
    task = int((to_close.values - to_open.values).argmin())
    opened[task, to_close.indices[task]] = False
    opened[task, to_open.indices[task]] = True


def _open_common(opened: Tensor, alpha: Tensor) -> None:
    """Open one channel for all tasks; each for which it was closed closes one not open for all."""
    open_for_all = opened.all(0)
    to_close = alpha.where(opened & ~open_for_all, torch.inf).min(1)
    loss = (to_close.values[:, None] - alpha).where(~opened, 0).sum(0)
    channel = int(loss.where(~open_for_all, torch.inf).argmin())
    for task in (~opened[:, channel]).nonzero()[:, 0].tolist():
        opened[task, to_close.indices[task]] = False
    opened[:, channel] = True
