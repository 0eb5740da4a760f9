"""The compact network: what is left of a supernet, as a plain module of smaller convolutions.

It is a straight list of steps over numbered tensors and is described completely by plain numbers,
so that JSON and a safetensors file rebuild it without the supernet, the study or any code of
theirs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.files import write_atomic
from gatesearch.models.encoder import ConvNorm
from gatesearch.models.parts import HeadSpec

FORMAT = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Piece(_Strict):
    """Channels of one tensor: a run of them, or a list where they do not lie in a run."""

    tensor: int = Field(ge=0)
    start: int = Field(default=0, ge=0)
    stop: int = Field(default=0, ge=0)
    channels: tuple[int, ...] | None = None


Gather = tuple[Piece, ...]
Tensors = Sequence[Tensor | None]
Places = Sequence[tuple[int, int]]  # (tensor, channel) of each channel


class ConvStep(_Strict):
    """A convolution, batch norm and, if asked, ReLU on gathered channels."""

    op: Literal["conv"] = "conv"
    name: str
    source: Gather
    inputs: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    relu: bool


class AddStep(_Strict):
    """ReLU of a sum of gathered channels."""

    op: Literal["add"] = "add"
    left: Gather
    right: Gather


class PoolStep(_Strict):
    """The 3x3 max-pooling of stride 2 of a ResNet's stem."""

    op: Literal["maxpool"] = "maxpool"
    source: Gather


class Term(_Strict):
    """What one task adds to a run of a mix's channels."""

    task: int = Field(ge=0)
    source: Gather
    start: int = Field(ge=0)
    stop: int = Field(ge=0)


class MixStep(_Strict):
    """Σ_t w_t x_t channel by channel; the weights, (tasks, channels), lie with the network's.

    The first term covers all channels, the others those on which their task differs.
    """

    op: Literal["mix"] = "mix"
    name: str
    terms: tuple[Term, ...] = Field(min_length=1)
    tasks: int
    channels: int


Step = Annotated[ConvStep | AddStep | PoolStep | MixStep, Field(discriminator="op")]


class HeadDescription(_Strict):
    """A task's head and the features it reads."""

    source: Gather
    kind: str
    inputs: int
    channels: int
    outputs: int


class Description(_Strict):
    """All of a compact network but its weights. Tensor 0 is the image, tensor i + 1 step i's."""

    format: Literal[1] = 1
    steps: tuple[Step, ...]
    heads: dict[str, HeadDescription]


class CompactNet(nn.Module):
    """A plain network: image (B, 3, H, W) -> task -> (B, channels, H, W)."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.convs = nn.ModuleDict()
        self.mixes = nn.ParameterDict()
        for step in description.steps:
            if isinstance(step, ConvStep):
                self.convs[step.name] = ConvNorm(
                    step.inputs,
                    step.outputs,
                    step.kernel,
                    stride=step.stride,
                    dilation=step.dilation,
                    relu=step.relu,
                )
            elif isinstance(step, MixStep):
                self.mixes[step.name] = nn.Parameter(torch.zeros(step.tasks, step.channels))
        self.heads = nn.ModuleDict(
            {
                task: HeadSpec(head.kind, head.inputs, head.channels, head.outputs).build()
                for task, head in description.heads.items()
            }
        )
        widths = _widths(description)
        self._reads = nn.ModuleList(
            nn.ModuleList(_Read(gather, widths) for gather in _sources(step))
            for step in description.steps
        )
        self._whole_mixes = nn.ModuleDict(
            {
                step.name: _WholeMix(step, widths)
                for step in description.steps
                if isinstance(step, MixStep)
            }
        )
        self._head_reads = nn.ModuleDict(
            {task: _Read(head.source, widths) for task, head in description.heads.items()}
        )
        self._drop_after = _last_reads(description)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the steps in order, dropping each tensor behind its last reader."""
        tensors: list[Tensor | None] = [image]
        for step, reads, drop in zip(
            self.description.steps, self._reads, self._drop_after, strict=True
        ):
            tensors.append(self._run(step, cast(list[_Read], reads), tensors))
            for dead in drop:
                tensors[dead] = None
        return {
            task: head(self._head_reads[task](tensors), image.shape[-2:])
            for task, head in self.heads.items()
        }

    def _run(self, step: Step, reads: Sequence["_Read"], tensors: Tensors) -> Tensor:
        if isinstance(step, AddStep):
            return torch.relu_(_sum(reads[0], reads[1], tensors))
        if isinstance(step, MixStep):
            if torch.compiler.is_exporting():
                return cast(Tensor, self._whole_mixes[step.name](tensors, self.mixes[step.name]))
            return _mixed(step, self.mixes[step.name], [read(tensors) for read in reads])
        x = reads[0](tensors)
        if isinstance(step, ConvStep):
            return cast(Tensor, self.convs[step.name](x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class _Indexed(nn.Module):
    """Channels of stored tensors by one index over them all.

    Exported programs read so what lies in many pieces: they hold few operators, and none that
    writes into a part of a tensor.
    """

    def __init__(self, places: Places, widths: Sequence[int]) -> None:
        super().__init__()
        self.tensors = sorted({tensor for tensor, _ in places})
        offsets, total = {}, 0
        for tensor in self.tensors:
            offsets[tensor] = total
            total += widths[tensor]
        index = torch.tensor([offsets[tensor] + channel for tensor, channel in places])
        self.register_buffer("index", index, persistent=False)

    def forward(self, tensors: Tensors) -> Tensor:
        """(B, C, H, W)."""
        chosen = [cast(Tensor, tensors[tensor]) for tensor in self.tensors]
        x = chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1)
        return x.index_select(1, self.get_buffer("index"))


class _WholeMix(nn.Module):
    """A mix over all channels for every task, as exported programs compute it."""

    def __init__(self, step: MixStep, widths: Sequence[int]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(_Indexed(row, widths) for row in _whole_rows(step))
        adds = torch.zeros(step.tasks, step.channels)
        for term in step.terms:
            adds[term.task, term.start : term.stop] = 1
        self.register_buffer("adds", adds, persistent=False)

    def forward(self, tensors: Tensors, weights: Tensor) -> Tensor:
        """(B, C, H, W)."""
        # Where a task adds nothing its row reads some channel, which then weighs nothing.
        weights = (weights * self.get_buffer("adds"))[..., None, None]
        parts = [row(tensors) * w for row, w in zip(self.rows, weights, strict=True)]
        return torch.stack(parts).sum(0)


class _Read(nn.Module):
    """Channels of stored tensors as one tensor, without a copy where they lie in one run."""

    def __init__(self, gather: Gather, widths: Sequence[int]) -> None:
        super().__init__()
        self.gather = gather
        self.in_runs = all(piece.channels is None for piece in gather)
        self.indexed = _Indexed(_places(gather), widths) if len(gather) > 2 else None
        for i, piece in enumerate(gather):
            if piece.channels is not None:
                self.register_buffer(f"index{i}", torch.tensor(piece.channels), persistent=False)

    def forward(self, tensors: Tensors) -> Tensor:
        """(B, C, H, W)."""
        if self.indexed is not None and torch.compiler.is_exporting():
            return cast(Tensor, self.indexed(tensors))
        pieces = self.pieces(tensors)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)

    def pieces(self, tensors: Tensors) -> list[Tensor]:
        """The parts that it is put together from."""
        return [self._piece(i, piece, tensors) for i, piece in enumerate(self.gather)]

    def _piece(self, i: int, piece: Piece, tensors: Tensors) -> Tensor:
        x = cast(Tensor, tensors[piece.tensor])
        if piece.channels is not None:
            return x.index_select(1, self.get_buffer(f"index{i}"))
        return x if piece.stop - piece.start == x.shape[1] else x[:, piece.start : piece.stop]


def _sum(left: _Read, right: _Read, tensors: Tensors) -> Tensor:
    """The sum of two reads, without putting together a side that lies in runs."""
    if len(left.gather) > 1 and left.in_runs:
        left, right = right, left
    if (len(left.gather) == 1 and left.in_runs) or not right.in_runs:
        return left(tensors) + right(tensors)
    if torch.compiler.is_exporting():
        return left(tensors) + right(tensors)
    # What `left` returns here is a copy of its own.
    total, at = left(tensors), 0
    for piece in right.pieces(tensors):
        total[:, at : at + piece.shape[1]].add_(piece)
        at += piece.shape[1]
    return total


def _mixed(step: MixStep, weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    weights = weights[..., None, None].to(terms[0].dtype)
    first, *others = step.terms
    total = terms[0] * weights[first.task]
    for term, x in zip(others, terms[1:], strict=True):
        run = slice(term.start, term.stop)
        total[:, run].addcmul_(x, weights[term.task, run])
    return total


def save_compact(model: CompactNet, stem: Path) -> None:
    """Write `<stem>.safetensors` and `<stem>.json`, each whole or not at all."""
    from safetensors.torch import save

    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    write_atomic(stem.with_suffix(".safetensors"), save(state))
    write_atomic(stem.with_suffix(".json"), model.description.model_dump_json(indent=1).encode())


def load_compact(stem: Path) -> CompactNet:
    """The network that `save_compact` wrote.

    Raises:
        UsageError: A file is missing, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = stem.with_suffix(".json")
    try:
        description = Description.model_validate_json(path.read_bytes())
        model = CompactNet(description)
        model.load_state_dict(load_file(stem.with_suffix(".safetensors")))
    # Pydantic's complaints are ValueErrors; a KeyError names a head or a module that cannot be.
    except (OSError, ValueError, LookupError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"{stem}.json and .safetensors must be a compact network of format {FORMAT}: {first}"
        ) from error
    return model.eval()


def _sources(step: Step) -> list[Gather]:
    if isinstance(step, AddStep):
        return [step.left, step.right]
    if isinstance(step, MixStep):
        return [term.source for term in step.terms]
    return [step.source]


def _places(gather: Gather) -> Places:
    return [
        (piece.tensor, channel)
        for piece in gather
        for channel in (piece.channels or range(piece.start, piece.stop))
    ]


def _widths(description: Description) -> list[int]:
    """Channels of every tensor, the image first."""
    widths = [3]
    for step in description.steps:
        if isinstance(step, ConvStep):
            widths.append(step.outputs)
        elif isinstance(step, MixStep):
            widths.append(step.channels)
        else:
            widths.append(len(_places(_sources(step)[0])))
    return widths


def _whole_rows(step: MixStep) -> list[Places]:
    """For every task what it adds to all channels; some channel where it adds nothing."""
    first = _places(step.terms[0].source)
    rows = [[first[0]] * step.channels for _ in range(step.tasks)]
    for term in step.terms:
        rows[term.task][term.start : term.stop] = _places(term.source)
    return list(rows)


def _last_reads(description: Description) -> list[list[int]]:
    last: dict[int, int] = {}
    for index, step in enumerate(description.steps):
        for gather in _sources(step):
            last |= dict.fromkeys((piece.tensor for piece in gather), index)
    for head in description.heads.values():
        for piece in head.source:
            last.pop(piece.tensor, None)
    dead: list[list[int]] = [[] for _ in description.steps]
    for tensor, index in last.items():
        dead[index].append(tensor)
    return dead
