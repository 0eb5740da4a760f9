"""The cost of a network as it is stored and compared; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one forward pass.

    Attributes:
        macs: Multiply-adds of the whole network, heads included.
        backbone_macs: Multiply-adds of everything outside the submodule named `heads`.
        params: Parameters, shared ones once.
        task_macs: Task -> multiply-adds of what its outputs alone need of a compact network; empty
            where that was not counted.
        uncounted: Operators that are neither counted nor known to be free, name -> calls.
        disagreements: One line for each counter whose figure differs from `macs`.
    """

    macs: int
    backbone_macs: int
    params: int
    task_macs: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()

    @property
    def gflops(self) -> float:
        """FLOPs of the whole network in 1e9, two per multiply-add."""
        return 2e-9 * self.macs

    @property
    def backbone_gflops(self) -> float:
        """FLOPs outside the heads in 1e9, two per multiply-add."""
        return 2e-9 * self.backbone_macs

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return 1e-6 * self.params
