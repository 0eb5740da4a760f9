"""The compact network: what is left of a supernet, as a plain module of smaller convolutions."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.files import write_atomic
from gatesearch.models.encoder import ConvNorm
from gatesearch.models.model_factory import HeadSpec
from gatesearch.pruning.channel_ops import Read, Tensors, WholeMix, added, mixed, pooled
from gatesearch.pruning.description import (
    FORMAT,
    AddStep,
    ConvStep,
    Description,
    MixStep,
    Step,
    last_reads,
    sources,
    widths_of,
)


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
                    ceiling=step.ceiling,
                    depthwise=step.depthwise,
                )
            elif isinstance(step, MixStep):
                self.mixes[step.name] = nn.Parameter(torch.zeros(step.tasks, step.channels))
        self.heads = nn.ModuleDict(
            {
                task: HeadSpec(head.kind, head.inputs, head.channels, head.outputs).build()
                for task, head in description.heads.items()
            }
        )
        widths = widths_of(description)
        self._reads = nn.ModuleList(
            nn.ModuleList(Read(gather, widths) for gather in sources(step))
            for step in description.steps
        )
        self._whole_mixes = nn.ModuleDict(
            {
                step.name: WholeMix(step, widths)
                for step in description.steps
                if isinstance(step, MixStep)
            }
        )
        self._head_reads = nn.ModuleDict(
            {task: Read(head.source, widths) for task, head in description.heads.items()}
        )
        self._drop_after = last_reads(description)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the steps in order, dropping each tensor behind its last reader."""
        tensors: list[Tensor | None] = [image]
        for step, reads, drop in zip(
            self.description.steps, self._reads, self._drop_after, strict=True
        ):
            tensors.append(self._run(step, cast(list[Read], reads), tensors))
            for dead in drop:
                tensors[dead] = None
        return {
            task: head(self._head_reads[task](tensors), image.shape[-2:])
            for task, head in self.heads.items()
        }

    def _run(self, step: Step, reads: Sequence["Read"], tensors: Tensors) -> Tensor:
        if isinstance(step, AddStep):
            total = added(reads[0], reads[1], tensors)
            return torch.relu_(total) if step.relu else total
        if isinstance(step, MixStep):
            if torch.compiler.is_exporting():
                return cast(Tensor, self._whole_mixes[step.name](tensors, self.mixes[step.name]))
            return mixed(step, self.mixes[step.name], [read(tensors) for read in reads])
        x = reads[0](tensors)
        if isinstance(step, ConvStep):
            return cast(Tensor, self.convs[step.name](x))
        return pooled(x)


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
