"""Modules of torchjd (https://torchjd.org), which is imported only when one is needed."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError


def from_torchjd(
    weighting: str, build: Callable[[ModuleType, ModuleType], nn.Module], *, extra: str = ""
) -> nn.Module:
    """Build a module of torchjd.

    Args:
        weighting: Name of the weighting that needs it.
        build: (torchjd.aggregation, torchjd.scalarization) -> the module.
        extra: Extra of torchjd with the solver that it needs.

    Raises:
        UsageError: torchjd or the solver is not installed; names the command that installs it.
    """
    package = f"torchjd[{extra}]" if extra else "torchjd"
    try:
        from torchjd import aggregation, scalarization

        return build(aggregation, scalarization)
    except ImportError as error:
        raise UsageError(
            f"weighting {weighting} needs {package}, which is not installed: "
            f'pip install "{package}>=0.18"'
        ) from error


class SeededDraws(nn.Module):
    """Gives a module random numbers of its own, so that the network's stay what they were.

    The numbers depend on the seed and on how often it was called before, and on nothing else.

    Args:
        inner: A module that draws from torch's global generators.
        seed: Seed of its numbers.
    """

    def __init__(self, inner: nn.Module, seed: int) -> None:
        super().__init__()
        self.inner = inner
        self.seed = seed
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Apply `inner`."""
        seed = (self.seed * 1_000_003 + self.calls) % 2**63
        self.calls += 1
        on_cuda = x.device.type == "cuda"
        with torch.random.fork_rng([x.device] if on_cuda else []):
            torch.default_generator.manual_seed(seed)
            if on_cuda:
                torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
            return self.inner(x)

    def get_extra_state(self) -> dict[str, int]:
        """Return the count of calls."""
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the count of calls."""
        self.calls = int(state["calls"])
