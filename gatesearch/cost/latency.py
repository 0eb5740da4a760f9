"""Latency: of a network as measured, of gate patterns by a table of measured layers.

Latency is the median time of one image in evaluation mode, in fp32, in the runtime's memory format,
on its device, with as many threads as torch has at the time. No formula knows it, so the layers of
a supernet are measured (`gatesearch.cost.layers`), and a pattern takes

    seconds = scale · (heads + Σ_l Σ_streams f_l(live outputs) + Σ_l a_l · live channels)

with f_l piecewise linear for nodes with weights, and a_l seconds per channel of element-wise nodes
and mixes. The sum ignores that streams that read the same channels run as one convolution, and that
channels are copied. `scale` corrects this on average, and measured patterns in the end
(`gatesearch.cost.fit`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from gatesearch.training import Runtime

Points = Sequence[tuple[int, float]]  # (live outputs, seconds), both above 0 and rising

_WARM_UP = 5


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured seconds of a supernet's layers, as plain numbers; a dead layer takes 0.

    Attributes:
        convs: Node with weights -> points of f_l, measured with all channels of its source,
            whatever the gates.
        elements: Element-wise node -> seconds per channel.
        mixes: Gated node -> seconds per mixed channel.
        heads: Seconds of all heads.
        ends: Measured seconds of the compact networks of all gates closed and all open.
        scale: Factor that corrects the sum.
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
            outputs: Node with weights -> (..., S) its live outputs in each of S streams.
            elements: Element-wise node -> (...) channels computed.
            mixes: Gated node -> (...) channels mixed.
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
        span: Minimum seconds that they take together.
    """
    network = runtime.place(network).eval()
    image = noise(shape, runtime)
    return median_seconds(lambda: network(image), runtime, runs=runs, span=span)


def median_seconds(
    work: Callable[[], object], runtime: Runtime, *, runs: int, span: float
) -> float:
    """Measure the median seconds of calls without gradients, until the device has finished each.

    Args:
        work: The function to call.
        runtime: The device on which it computes.
        runs: Minimum number of calls measured, after a few unmeasured ones.
        span: Minimum seconds that they take together.
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
    """Draw numbers in [0, 1), the same each time, (1, C, H, W), on the device."""
    return runtime.image(torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def _finish(runtime: Runtime) -> None:
    if runtime.device == "cuda":
        torch.cuda.synchronize()
    elif runtime.device == "mps":
        torch.mps.synchronize()


def _interpolated(points: Sequence[Points], counts: Tensor) -> Tensor:
    """f_l of counts (N, ...) for N functions through 0 and their points, linear in between."""
    longest = max(len(knots) for knots in points)
    # The last point is repeated to make the rows equally long.
    rows = [[(0, 0.0), *knots, *[knots[-1]] * (longest - len(knots))] for knots in points]
    table = torch.tensor(rows, dtype=torch.float64, device=counts.device)
    knots, values = table.unbind(-1)
    flat = counts.flatten(1)
    right = torch.searchsorted(knots.contiguous(), flat.detach()).clamp(1, longest)
    (x0, x1), (y0, y1) = (
        (column.gather(1, right - 1), column.gather(1, right)) for column in (knots, values)
    )
    return (y0 + (y1 - y0) / (x1 - x0).clamp(min=1) * (flat - x0)).reshape(counts.shape)
