"""What torchjd supplies (https://torchjd.org), imported where it is used."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError


def from_torchjd(what: str, make: Callable[[Any, Any], nn.Module], *, extra: str = "") -> nn.Module:
    """A module of torchjd.

    Args:
        what: The weighting that needs it.
        make: (torchjd.aggregation, torchjd.scalarization) -> the module.
        extra: Of torchjd, for the solver that it needs.

    Raises:
        UsageError: torchjd or the solver is not installed; tells the command.
    """
    package = f"torchjd[{extra}]" if extra else "torchjd"
    try:
        from torchjd import aggregation, scalarization

        return make(aggregation, scalarization)
    except ImportError as error:
        raise UsageError(
            f"weighting {what} needs {package}, which is not installed: "
            f'pip install "{package}>=0.18"'
        ) from error


class Drawn(nn.Module):
    """Has a module draw from numbers of its own, so that the network draws what it always does.

    The numbers of a call depend on seed and count of calls alone.

    Args:
        inner: Draws from torch's global generators.
        seed: Of its numbers.
    """

    def __init__(self, inner: nn.Module, seed: int) -> None:
        super().__init__()
        self.inner = inner
        self.seed = seed
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """What `inner` makes of it."""
        seed = (self.seed * 1_000_003 + self.calls) % 2**63
        self.calls += 1
        on_cuda = x.device.type == "cuda"
        with torch.random.fork_rng([x.device] if on_cuda else []):
            torch.default_generator.manual_seed(seed)
            if on_cuda:
                torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
            return self.inner(x)

    def get_extra_state(self) -> dict[str, int]:
        """The count of calls."""
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from it."""
        self.calls = int(state["calls"])
