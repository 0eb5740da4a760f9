"""The compact network: the live channels of a supernet as a plain module, without gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError, first_line
from gatesearch.files import FileRefusedError, read_json, write_atomic
from gatesearch.models.channel_ops import Read
from gatesearch.models.heads import HEADS, Heads, reads_stages
from gatesearch.models.model_factory import OWN, HeadSpec
from gatesearch.models.nodes import StepWeights
from gatesearch.pruning.description import Description, HeadDescription
from gatesearch.tensor_files import TYPES, read_tensors

WEIGHTS, DESCRIPTION = ".safetensors", ".json"


class CompactNet(nn.Module):
    """A plain network: image (B, 3, H, W) -> task -> (B, channels, H, W).

    Args:
        description: All of the network except its weights.
        heads: Task -> head; None builds the heads that the description names, with fresh weights.
            In the state dict their tensors are below `heads.TASK.`, with a head's own names. A head
            is called with features, or features and image size (`models.heads.takes_size`).
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
            heads = _described_heads(description, {})
        self.heads = Heads(heads)
        widths = description.widths
        self._readers = nn.ModuleList(step.readers(widths) for step in description.steps)
        self._head_readers = nn.ModuleDict(
            {
                task: nn.ModuleList(Read(source, widths) for source in head.sources)
                for task, head in description.heads.items()
            }
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
            task: self.heads.call_head(task, self._maps(task, tensors), image.shape[-2:])
            for task in self.heads
        }

    def _maps(self, task: str, tensors: list[Tensor | None]) -> list[Tensor]:
        return [read(tensors) for read in cast(nn.ModuleList, self._head_readers[task])]

    def _weights(self) -> StepWeights:
        return StepWeights(self.convs, self.mixes)


def describe_compact(module: nn.Module) -> dict[str, object]:
    """Describe a compact network as plain JSON values, for `rebuild_compact`."""
    assert isinstance(module, CompactNet)
    return module.description.model_dump(mode="json")


def rebuild_compact(described: Mapping[str, object]) -> CompactNet:
    """Build the compact network that `describe_compact` described, with fresh weights."""
    return CompactNet(Description.model_validate(described))


def compact_files(model: CompactNet) -> dict[str, bytes]:
    """Make the files that `read_compact` rebuilds the network from: suffix -> content.

    Raises:
        UsageError: A head is not the one that the description names, or its state cannot be saved.
    """
    from safetensors.torch import save

    _check_heads(model)
    state = saved_state(model)
    description = model.description.model_dump_json(indent=1).encode()
    return {WEIGHTS: save(state), DESCRIPTION: description}


def save_compact(model: CompactNet, stem: Path) -> None:
    """Write `<stem>.safetensors` and `<stem>.json`, each whole or not at all.

    Raises:
        UsageError: A head cannot be rebuilt from the description; nothing is written.
    """
    for suffix, content in compact_files(model).items():
        write_atomic(_file(stem, suffix), content)


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict as a safetensors file holds it, on the CPU.

    Raises:
        UsageError: As for `check_saveable`.
    """
    check_saveable(model)
    state = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    # Tasks can share a head. The format has no tensors that share memory.
    memory: set[int] = set()
    for name, tensor in state.items():
        address = tensor.untyped_storage().data_ptr()
        state[name] = tensor.clone() if address in memory else tensor
        memory.add(address)
    return state


def check_saveable(model: nn.Module) -> None:
    """Refuse a network whose state does not fit into a safetensors file.

    Raises:
        UsageError: Its state dict holds another thing than a dense tensor of a common type.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            found = type(value).__name__
        elif value.layout != torch.strided or value.dtype not in TYPES.values():
            found = f"a tensor of {value.dtype}, {value.layout}"
        else:
            continue
        raise UsageError(
            "a network that is saved must have a state dict of dense tensors of whole, floating "
            f"point or truth values, found {found} as {name}; keep it outside the state dict"
        )


def _file(stem: Path, suffix: str) -> Path:
    """Name a file; a stem may hold dots, as `net-1.3xMTL`."""
    return stem.with_name(stem.name + suffix)


def _described_heads(
    description: Description, own: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Build the heads that a description names, with fresh weights, and add a user's.

    Args:
        description: The network's.
        own: Task -> module, for each head of kind `own`.
    """
    return {
        task: own[task] if head.kind == OWN else _build_head(head)
        for task, head in description.heads.items()
    }


def _build_head(head: HeadDescription) -> nn.Module:
    """Build a head with fresh weights."""
    assert head.channels is not None
    assert head.outputs is not None
    return HeadSpec(head.kind, head.inputs, head.channels, head.outputs, head.features).build()


def _check_heads(model: CompactNet) -> None:
    """Refuse a network with a head other than the one that its description names.

    Raises:
        UsageError: There is such a head.
    """
    for task, described in model.description.heads.items():
        head = model.heads[task]
        if described.kind == OWN:
            continue
        if described.kind in HEADS:
            with torch.device("meta"):
                named = _build_head(described)
            if _structure(head) == _structure(named):
                continue
        raise UsageError(
            f"a network that is saved as JSON and weights must have heads of {', '.join(HEADS)}, "
            f"from which it is rebuilt, found {type(head).__name__} for task {task}; use one of "
            "these, give heads of your own to gs.InterroGate, or keep only the weights with "
            "torch.save(network.state_dict(), FILE)"
        )


def _structure(head: nn.Module) -> tuple[object, ...]:
    """Describe a module without the values of its tensors."""
    layers = tuple((name, type(m), m.extra_repr()) for name, m in head.named_modules())
    return layers, tuple((name, tensor.shape) for name, tensor in head.state_dict().items())


def load_compact(stem: Path, heads: Mapping[str, nn.Module] | None = None) -> CompactNet:
    """Read the network that `save_compact` wrote.

    Args:
        stem: Path of its files without their suffix.
        heads: See `read_compact`.

    Raises:
        FileRefusedError: As for `read_compact`.
        UsageError: As for `read_compact`.
    """
    return read_compact(_file(stem, DESCRIPTION), _file(stem, WEIGHTS), heads)


def read_compact(
    description_file: Path, weights_file: Path, heads: Mapping[str, nn.Module] | None = None
) -> CompactNet:
    """Read a network from its files, in evaluation mode.

    Its shape is compared with the weights before any memory is allocated for it.

    Args:
        description_file: The description.
        weights_file: The weights.
        heads: Task -> module, for the heads that are a user's; their weights are replaced by those
            of the file.

    Raises:
        FileRefusedError: A file is missing, damaged or of another format, or does not belong to the
            other one.
        UsageError: `heads` are not those of the user's that the network has.
    """
    heads = heads or {}
    try:
        description = read_json(description_file, Description)
        try:
            description.check()
            _check_own_heads(description, heads, description_file)
            with torch.device("meta"):
                shape = CompactNet(description, _described_heads(description, heads))
        # Unknown heads and impossible names of modules are KeyErrors; torch raises the others.
        except (KeyError, RuntimeError, ValueError) as error:
            raise FileRefusedError(
                description_file, f"describes an impossible network: {first_line(error)[:200]}"
            ) from error
        state, _ = read_tensors(weights_file, shape.state_dict())
    except OSError as error:
        path = Path(error.filename or description_file)
        raise FileRefusedError(path, f"is missing or cannot be read ({error.strerror})") from error
    model = CompactNet(description, _described_heads(description, heads))
    model.load_state_dict(state)
    return model.eval()


def _check_own_heads(description: Description, heads: Mapping[str, nn.Module], file: Path) -> None:
    """Refuse modules for other tasks than those whose heads are a user's.

    Raises:
        UsageError: There are too many, or too few.
    """
    own = [task for task, head in description.heads.items() if head.kind == OWN]
    if set(heads) != set(own):
        raise UsageError(
            f"the network of {file} has heads of its user's for {', '.join(own) or 'no task'}, "
            f"found heads for {', '.join(map(str, heads)) or 'none'}; read it with "
            "gs.load(STEM, heads={TASK: MODULE}), each module built as before training"
        )
    for task in own:
        if reads_stages(heads[task]) != (description.heads[task].stride is not None):
            raise UsageError(
                f"the head of task {task} in {file} must have "
                f"reads_stages = {not reads_stages(heads[task])}, found the contrary; build it as "
                "before training"
            )
