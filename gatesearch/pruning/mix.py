"""The mix of all tasks' features into the shared stream, in a compact network."""

from collections.abc import Sequence
from functools import reduce
from typing import Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.models.channel_ops import Indexed, Read, Tensors, at_positions, in_inference
from gatesearch.models.channel_source import (
    MOST_CHANNELS,
    Channels,
    ChannelSource,
    Positions,
    channel_count,
    channel_positions,
)
from gatesearch.models.nodes import Ids, Mask, Step, StepName, StepWeights
from gatesearch.strict import Strict

# Largest number of tasks in a file.
MOST_TASKS = 256


class Term(Strict):
    """The channels that one task adds to channels `start` to `stop` of a mix."""

    task: int = Field(ge=0)
    source: ChannelSource
    start: int = Field(ge=0, le=MOST_CHANNELS)
    stop: int = Field(ge=0, le=MOST_CHANNELS)


class MixStep(Step):
    """Σ_t w_t x_t channel by channel, with weights (tasks, channels).

    The first term covers all channels, the others those in which their task differs.
    """

    op: Literal["mix"] = "mix"
    name: StepName
    terms: tuple[Term, ...] = Field(min_length=1)
    tasks: int = Field(ge=1, le=MOST_TASKS)
    channels: Channels

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """The channels of each term."""
        return tuple(term.source for term in self.terms)

    @property
    def width(self) -> int:
        """Mixed channels."""
        return self.channels

    @property
    def channel_groups(self) -> int:
        """Each channel is a group; a term reads those of its run alone."""
        return self.channels

    def needed_inputs(self, computed: Mask) -> tuple[Mask, ...]:
        """A channel needs what every term adds to it."""
        return tuple(computed[term.start : term.stop] for term in self.terms)

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the mix of some channels, without the terms that add to none of them."""
        terms = []
        for term, source in zip(self.terms, sources, strict=True):
            start, stop = outputs.searchsorted([term.start, term.stop]).tolist()
            if start < stop:
                terms.append(
                    term.model_copy(update={"source": source, "start": start, "stop": stop})
                )
        return self.model_copy(update={"terms": tuple(terms), "channels": len(outputs)})

    @property
    def listed(self) -> int:
        """Those of its terms, and all channels for every task (`WholeMix`)."""
        return super().listed + self.tasks * self.channels

    def check(self, widths: Sequence[int]) -> None:
        """Refuse terms that do not fit the mix also; see `Step.check`."""
        super().check(widths)
        for index, term in enumerate(self.terms):
            read, filled = channel_count(term.source), term.stop - term.start
            if term.task >= self.tasks:
                raise ValueError(f"terms.{index}: must be of {self.tasks} tasks, found {term.task}")
            if read != filled or term.stop > self.channels:
                raise ValueError(
                    f"terms.{index}: must add {read} of {self.channels} channels, found "
                    f"{term.start} to {term.stop}"
                )
        if channel_count(self.terms[0].source) != self.channels:
            raise ValueError(f"terms.0: must cover all {self.channels} channels")

    def add_weights(self, weights: StepWeights) -> None:
        """Add (T, C) weights."""
        weights.mixes[self.name] = nn.Parameter(torch.zeros(self.tasks, self.channels))

    def readers(self, widths: Sequence[int]) -> nn.ModuleList:
        """Build a reader of each term, and last the `WholeMix`."""
        return super().readers(widths).append(WholeMix(self, widths))

    def run(self, tensors: Tensors, readers: Sequence[nn.Module], weights: StepWeights) -> Tensor:
        """Mix the channels read."""
        *terms, whole = readers
        mix = weights.mixes[self.name]
        if torch.compiler.is_exporting():
            return cast(Tensor, whole(tensors, mix))
        return self.mixed(cast(Sequence[Read], terms), tensors, mix)

    def mixed(self, readers: Sequence[Read], tensors: Tensors, weights: Tensor) -> Tensor:
        """Compute the mix, (B, C, *positions), of what the terms read, with weights (T, C).

        Unlike in `mixing_sum`, a term adds to a run of the channels only.
        """
        total = readers[0](tensors)
        weights = at_positions(weights, total).to(total.dtype)
        overwrites = in_inference(total) and not readers[0].in_place
        total = torch.mul(total, weights[self.terms[0].task], out=total if overwrites else None)
        for term, read in zip(self.terms[1:], readers[1:], strict=True):
            start = term.start
            pieces = read.pieces(tensors) if in_inference(total) else [read(tensors)]
            for piece in pieces:
                run = slice(start, start + piece.shape[1])
                total[:, run].addcmul_(piece, weights[term.task, run])
                start = run.stop
        return total


class WholeMix(nn.Module):
    """A mix over all channels for every task, as exported programs compute it."""

    def __init__(self, step: MixStep, widths: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(Indexed(row, widths) for row in _whole_rows(step))
        adds = torch.zeros(step.tasks, step.channels)
        for term in step.terms:
            adds[term.task, term.start : term.stop] = 1
        self.register_buffer("adds", adds, persistent=False)

    def forward(self, tensors: Tensors, weights: Tensor) -> Tensor:
        """Mix (B, C, *positions)."""
        # Where a task adds nothing its row reads some channel, with weight 0.
        weights = weights * self.get_buffer("adds")
        read = [row(tensors) for row in self.rows]
        parts = [x * at_positions(w, x) for x, w in zip(read, weights, strict=True)]
        return reduce(torch.add, parts)


def _whole_rows(step: MixStep) -> list[Positions]:
    """For every task, what it adds to each channel; any channel where it adds nothing."""
    first = channel_positions(step.terms[0].source)
    rows = [[first[0]] * step.channels for _ in range(step.tasks)]
    for term in step.terms:
        rows[term.task][term.start : term.stop] = channel_positions(term.source)
    return list(rows)
