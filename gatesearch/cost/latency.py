"""Latency: measure that of a network, and estimate that of gate patterns from measured layers.

Latency is the median time of a forward pass on one image, in evaluation mode and fp32, in the
runtime's memory format and on its device, with as many threads as torch uses at the time. No
formula gives it, so the layers of a supernet are measured (`gatesearch.cost.layers`), and the
latency of a pattern is estimated as

    seconds = scale · (heads + Σ_l Σ_streams f_l(live outputs) + Σ_l a_l · live channels)

where f_l is piecewise linear for nodes with weights, and a_l is the seconds per channel of
element-wise nodes and mixes. The sum ignores that streams that read the same channels run as one
convolution, and that channels are copied. `scale` corrects this on average. In the end, patterns
are measured (`gatesearch.cost.fit`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from gatesearch.training import Runtime

# (live outputs, seconds) of a layer; both are above 0 and rise.
Points = Sequence[tuple[int, float]]

# Calls before the first measured one.
_WARM_UP = 5


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured seconds of a supernet's layers, as plain numbers; a layer without channels takes 0.

    Attributes:
        convs: Node with weights -> points of f_l. They are measured with all channels of the node's
            source; that gates leave out some of them is ignored.
        elements: Element-wise node -> seconds per channel.
        mixes: Gated node -> seconds per mixed channel.
        heads: Seconds of all heads.
        ends: Measured seconds of the compact networks with (all gates closed, all gates open).
        scale: Factor that corrects the sum of the layers.
    """

    convs: Mapping[str, Points]
    elements: Mapping[str, float]
    mixes: Mapping[str, float]
    heads: float
    ends: tuple[float, float]
    scale: float = 1.0

    def seconds(
        self,
        *,
        outputs: Mapping[str, Tensor],
        elements: Mapping[str, Tensor],
        mixes: Mapping[str, Tensor],
    ) -> Tensor:
        """Estimate the seconds of patterns, (...) float64; differentiable.

        Args:
            outputs: Node with weights -> (..., S) number of its live outputs in each of S streams.
            elements: Element-wise node -> (...) number of different channels that it computes.
            mixes: Gated node -> (...) number of channels that it mixes.
        """
        counts = torch.stack([outputs[name].double() for name in self.convs])
        total = self.heads + _interpolated(list(self.convs.values()), counts).sum((0, -1))
        for per_channel, channels in ((self.elements, elements), (self.mixes, mixes)):
            for name, count in channels.items():
                total = total + per_channel[name] * count.double()
        return self.scale * total


def median_latency(
    network: nn.Module,
    shape: tuple[int, ...],
    runtime: Runtime,
    *,
    runs: int = 30,
    span: float = 0.5,
) -> float:
    """Measure the median seconds of a forward pass on one image.

    Args:
        network: The network; it is moved to the device and put into evaluation mode.
        shape: (1, 3, H, W) of the image.
        runtime: Device and memory format; its precision is not used.
        runs: Minimum number of passes measured.
        span: Minimum seconds of all measured passes together.
    """
    network = runtime.place(network).eval()
    image = noise(shape, runtime)
    return median_seconds(lambda: network(image), runtime, runs=runs, span=span)


def median_seconds(
    work: Callable[[], object], runtime: Runtime, *, runs: int, span: float
) -> float:
    """Measure the median seconds of a call without gradients, which ends when the device is done.

    Args:
        work: The function to call.
        runtime: The device on which it computes.
        runs: Minimum number of measured calls, after a few unmeasured ones.
        span: Minimum seconds of all measured calls together.
    """
    laps: list[float] = []
    with torch.inference_mode():
        for _ in range(_WARM_UP):
            work()
        _finish(runtime)
        while len(laps) < runs or sum(laps) < span:
            start = time.perf_counter()
            work()
            _finish(runtime)
            laps.append(time.perf_counter() - start)
    return median(laps)


def noise(shape: tuple[int, ...], runtime: Runtime) -> Tensor:
    """Draw an image of numbers in [0, 1), the same each time, on the device.

    Args:
        shape: (1, C, H, W).
        runtime: Device and memory format.
    """
    return runtime.image(torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def _finish(runtime: Runtime) -> None:
    """Wait until the device has finished."""
    if runtime.device == "cuda":
        torch.cuda.synchronize()
    elif runtime.device == "mps":
        torch.mps.synchronize()


def _interpolated(points: Sequence[Points], counts: Tensor) -> Tensor:
    """Evaluate N piecewise linear functions through (0, 0) and their points.

    Args:
        points: Points of each function.
        counts: (N, ...) arguments.

    Returns:
        (N, ...) values.
    """
    longest = max(len(knots) for knots in points)
    # The last point is repeated, so that all rows have the same length.
    rows = [[(0, 0.0), *knots, *[knots[-1]] * (longest - len(knots))] for knots in points]
    table = torch.tensor(rows, dtype=torch.float64, device=counts.device)
    knots, values = table.unbind(-1)
    flat = counts.flatten(1)
    right = torch.searchsorted(knots.contiguous(), flat.detach()).clamp(1, longest)
    (x0, x1), (y0, y1) = (
        (column.gather(1, right - 1), column.gather(1, right)) for column in (knots, values)
    )
    return (y0 + (y1 - y0) / (x1 - x0).clamp(min=1) * (flat - x0)).reshape(counts.shape)
