"""Gate patterns whose convolutions have multiples of some number of channels.

Processors compute channels in groups, and what a layer has beyond the last full group costs as much
as a whole one. So in every gated node the channels that each task owns are brought to a multiple,
and those of the shared stream too. A node that is no multiple wide itself has a last group that is
smaller: counts allowed are 0, m, 2m, ... and all C channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def rounded(
    gates: Mapping[str, Tensor], alpha: Mapping[str, Tensor], *, multiple: int
) -> dict[str, Tensor]:
    """The pattern of allowed counts near a pattern.

    Each task's own channels go to the nearest count allowed, the lower of two, by opening the
    closed gates of the highest α or closing the open ones of the lowest. The shared stream's, which
    are all but those that every task owns, follow by exchanging which channels tasks own; of the
    nearest count allowed below and above, the one whose exchanges lose less α. Where C is no
    multiple, some counts of tasks allow no count of the shared stream, whatever is exchanged: then
    the task with the most channels closes its last group, and so on.

    Args:
        gates: Gated node -> (T, C) bool, True where the task owns the channel.
        alpha: Gated node -> (T, C) logits.
        multiple: m, channels; 1 leaves everything as it is.

    Returns:
        Gated node -> (T, C) bool.
    """
    if multiple == 1:
        return {name: own.clone() for name, own in gates.items()}
    return {
        name: _rounded(own, alpha[name].detach().to(own.device).double(), multiple)
        for name, own in gates.items()
    }


def allowed_counts(channels: int, multiple: int) -> list[int]:
    """Counts of live channels that are a multiple, and all of them.

    >>> allowed_counts(20, 8)
    [0, 8, 16, 20]
    """
    return [*range(0, channels, multiple), channels]


def _rounded(own: Tensor, alpha: Tensor, multiple: int) -> Tensor:
    channels = own.shape[1]
    allowed = allowed_counts(channels, multiple)
    counts = [min(allowed, key=lambda n: (abs(n - count), n)) for count in own.sum(1).tolist()]
    while not (reachable := _reachable(counts, allowed)):
        most = counts.index(max(counts))
        counts[most] = allowed[allowed.index(counts[most]) - 1]
    own = _with_counts(own, alpha, counts)
    common = int(own.all(0).sum())
    nearest = {
        min((n for n in reachable if n >= common), default=reachable[-1]),
        max((n for n in reachable if n <= common), default=reachable[0]),
    }
    # Of equal losses the one with fewer shared channels, which costs less.
    tries = [_exchanged(own, alpha, count) for count in sorted(nearest, reverse=True)]
    return max(tries, key=lambda pattern: float(alpha[pattern].sum()))


def _reachable(counts: list[int], allowed: list[int]) -> list[int]:
    """How many channels all tasks can own in common, ascending, for their counts to be allowed."""
    channels, closed = allowed[-1], sum(allowed[-1] - count for count in counts)
    least, most = max(0, channels - closed), min(counts)
    return [n for n in sorted(channels - shared for shared in allowed) if least <= n <= most]


def _with_counts(own: Tensor, alpha: Tensor, counts: list[int]) -> Tensor:
    """So many channels of each task: first what it owns, then by α."""
    order = alpha.argsort(dim=1, descending=True, stable=True)
    owned = own.gather(1, order).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    places = order.gather(1, owned).argsort(1)
    return places < torch.tensor(counts, device=own.device)[:, None]


def _exchanged(own: Tensor, alpha: Tensor, common: int) -> Tensor:
    """Have so many channels owned by all tasks, by the exchanges that lose least α, one by one."""
    own = own.clone()
    while (now := int(own.all(0).sum())) != common:
        (_spread if now > common else _gather)(own, alpha)
    return own


def _spread(own: Tensor, alpha: Tensor) -> None:
    """A task leaves a channel that all own, for one that another task leaves closed too."""
    full = own.all(0)
    takes = ~own & ((~own).sum(0) > 1)
    left = alpha.where(full, torch.inf).min(1)
    taken = alpha.where(takes, -torch.inf).max(1)
    task = int((left.values - taken.values).argmin())
    own[task, left.indices[task]] = False
    own[task, taken.indices[task]] = True


def _gather(own: Tensor, alpha: Tensor) -> None:
    """A channel becomes everyone's; who had not owned it leaves one that not all own."""
    full = own.all(0)
    left = alpha.where(own & ~full, torch.inf).min(1)
    loss = (left.values[:, None] - alpha).where(~own, 0).sum(0)
    channel = int(loss.where(~full, torch.inf).argmin())
    for task in (~own[:, channel]).nonzero()[:, 0].tolist():
        own[task, left.indices[task]] = False
    own[:, channel] = True
