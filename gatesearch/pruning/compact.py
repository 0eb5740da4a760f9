"""The compact network: the live channels of a supernet as a plain module, without gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError, first_line
from gatesearch.files import FileRefusedError, read_json, write_atomic
from gatesearch.models.channel_ops import Read
from gatesearch.models.heads import HEADS
from gatesearch.models.model_factory import HeadSpec
from gatesearch.models.nodes import StepWeights
from gatesearch.pruning.description import Description, HeadDescription
from gatesearch.tensor_files import read_tensors

WEIGHTS, DESCRIPTION = ".safetensors", ".json"


class CompactNet(nn.Module):
    """A plain network: image (B, 3, H, W) -> task -> (B, channels, H, W).

    Args:
        description: All of the network except its weights.
        heads: Task -> head; None builds the heads that the description names, with fresh weights.
            In the state dict their tensors are below `heads.TASK.`, with a head's own names.
    """

    def __init__(
        self, description: Description, heads: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.description = description
        self.convs = nn.ModuleDict()
        self.mixes = nn.ParameterDict()
        for step in description.steps:
            step.add_weights(self._weights())
        if heads is None:
            heads = {task: _build_head(head) for task, head in description.heads.items()}
        self.heads = nn.ModuleDict(heads)
        widths = description.widths
        self._readers = nn.ModuleList(step.readers(widths) for step in description.steps)
        self._head_readers = nn.ModuleDict(
            {task: Read(head.source, widths) for task, head in description.heads.items()}
        )
        self._unread_after = description.unread_after()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the steps in order, dropping each tensor after its last reader."""
        tensors: list[Tensor | None] = [image]
        weights = self._weights()
        for step, readers, unread in zip(
            self.description.steps, self._readers, self._unread_after, strict=True
        ):
            tensors.append(step.run(tensors, cast(list[Read], readers), weights))
            for tensor in unread:
                tensors[tensor] = None
        return {
            task: head(self._head_readers[task](tensors), image.shape[-2:])
            for task, head in self.heads.items()
        }

    def _weights(self) -> StepWeights:
        return StepWeights(self.convs, self.mixes)


def compact_files(model: CompactNet) -> dict[str, bytes]:
    """Make the files that `read_compact` rebuilds the network from: suffix -> content.

    Raises:
        UsageError: A head cannot be rebuilt from the description.
    """
    from safetensors.torch import save

    _check_heads(model)
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    description = model.description.model_dump_json(indent=1).encode()
    return {WEIGHTS: save(state), DESCRIPTION: description}


def save_compact(model: CompactNet, stem: Path) -> None:
    """Write `<stem>.safetensors` and `<stem>.json`, each whole or not at all.

    Raises:
        UsageError: A head cannot be rebuilt from the description; nothing is written.
    """
    for suffix, content in compact_files(model).items():
        write_atomic(stem.with_suffix(suffix), content)


def _build_head(head: HeadDescription) -> nn.Module:
    """Build a head with fresh weights."""
    return HeadSpec(head.kind, head.inputs, head.channels, head.outputs).build()


def _check_heads(model: CompactNet) -> None:
    """Refuse a network with a head other than the one that its description names.

    Raises:
        UsageError: There is such a head.
    """
    for task, described in model.description.heads.items():
        head = model.heads[task]
        if described.kind in HEADS:
            with torch.device("meta"):
                named = _build_head(described)
            if _structure(head) == _structure(named):
                continue
        raise UsageError(
            f"a network that is saved as JSON and weights must have heads of {', '.join(HEADS)}, "
            f"from which it is rebuilt, found {type(head).__name__} for task {task}; use one of "
            "these, or keep only the weights with torch.save(network.state_dict(), FILE)"
        )


def _structure(head: nn.Module) -> tuple[object, ...]:
    """Describe a module without the values of its tensors."""
    layers = tuple((name, type(m), m.extra_repr()) for name, m in head.named_modules())
    return layers, tuple((name, tensor.shape) for name, tensor in head.state_dict().items())


def load_compact(stem: Path) -> CompactNet:
    """Read the network that `save_compact` wrote.

    Raises:
        FileRefusedError: As for `read_compact`.
    """
    return read_compact(stem.with_suffix(DESCRIPTION), stem.with_suffix(WEIGHTS))


def read_compact(description_file: Path, weights_file: Path) -> CompactNet:
    """Read a network from its files, in evaluation mode.

    Its shape is compared with the weights before any memory is allocated for it.

    Raises:
        FileRefusedError: A file is missing, damaged or of another format, or does not belong to the
            other one.
    """
    try:
        description = read_json(description_file, Description)
        try:
            description.check()
            with torch.device("meta"):
                shape = CompactNet(description)
        # Unknown heads and impossible names of modules are KeyErrors; torch raises the others.
        except (KeyError, RuntimeError, ValueError) as error:
            raise FileRefusedError(
                description_file, f"describes an impossible network: {first_line(error)[:200]}"
            ) from error
        state, _ = read_tensors(weights_file, shape.state_dict())
    except OSError as error:
        path = Path(error.filename or description_file)
        raise FileRefusedError(path, f"is missing or cannot be read ({error.strerror})") from error
    model = CompactNet(description)
    model.load_state_dict(state)
    return model.eval()
