"""File formats in which a network can be exported."""

import io
import tempfile
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from gatesearch.errors import UsageError
from gatesearch.export.seals import seal_card, seal_onnx
from gatesearch.export.shipped import CARD, Card, Shipped
from gatesearch.files import write_atomic
from gatesearch.models.encoder import Encoder
from gatesearch.models.nodes.position_operations import Reshape
from gatesearch.pruning import CompactNet
from gatesearch.pruning.compact import compact_files

OPSET = 18


def write_network(network: nn.Module, card: Card, path: Path, *, form: str) -> None:
    """Write a network in evaluation mode; the file is written whole or not at all.

    Args:
        network: Images (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        card: Card that is written with the network.
        path: The file; it must end in the suffix of the format.
        form: A name in `FORMATS`.

    Raises:
        UsageError: The suffix is not the format's, or the format cannot hold this network.
    """
    if path.suffix != f".{form}":
        raise UsageError(f"a file of format {form} must end in .{form}, found {path}")
    FORMATS[form](network.eval(), card, path)


def _safetensors(network: nn.Module, card: Card, path: Path) -> None:
    """Write the weights, `<stem>.json` that rebuilds the network, and `<stem>.card.json`.

    The card holds the checksums of the other two.
    """
    if not isinstance(network, CompactNet):
        raise UsageError(
            f"safetensors holds compact networks, found {card.network}; export it as pt2 or onnx"
        )
    contents = compact_files(network)
    checksums = {suffix: sha256(content).hexdigest() for suffix, content in contents.items()}
    write_atomic(path.with_suffix(".card.json"), seal_card(card, checksums).encode())
    for suffix, content in contents.items():
        write_atomic(path.with_suffix(suffix), content)


def _pt2(network: nn.Module, card: Card, path: Path) -> None:
    """Write a program that `torch.export.load(path).module()` runs without gatesearch.

    `<name>.sha256` beside it is for `sha256sum --check`.
    """
    buffer = io.BytesIO()
    torch.export.save(_program(network, card), buffer, extra_files={CARD: seal_card(card)})
    content = buffer.getvalue()
    line = f"{sha256(content).hexdigest()}  {path.name}\n"
    write_atomic(path.with_name(f"{path.name}.sha256"), line.encode())
    write_atomic(path, content)


def _onnx(network: nn.Module, card: Card, path: Path) -> None:
    """Write ONNX at opset `OPSET`, with the card as `gatesearch.json` in its metadata.

    Its last bytes are a checksum (see `seals`).
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"exporting to ONNX needs {error.name}: pip install 'gatesearch[onnx]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _program(network, card),
                (),
                file,
                input_names=["image"],
                output_names=list(card.tasks),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        model = onnx.load(file)
    onnx.helper.set_model_props(model, {CARD: seal_card(card)})
    onnx.checker.check_model(model, full_check=True)
    write_atomic(path, seal_onnx(model.SerializeToString()))


def _program(network: nn.Module, card: Card) -> torch.export.ExportedProgram:
    """Trace the network so that it takes any batch size, and any height and width it can take.

    torch.export tells axes of length 1 from others, so a program refuses images that make a map
    inside the network one pixel high or wide, unless those that it is traced with do. Its option
    `backed_size_oblivious` lifts this, but then ConvNeXt refuses a batch of one image.
    """
    auto = torch.export.Dim.AUTO
    side = torch.export.Dim.STATIC if _takes_one_size(network) else auto
    shipped = Shipped(network, tuple(card.tasks)).eval()
    height, width = card.size
    with torch.no_grad():
        return torch.export.export(
            shipped,
            (torch.zeros(2, 3, height, width),),
            dynamic_shapes={"image": {0: auto, 2: side, 3: side}},
        )


def _takes_one_size(network: nn.Module) -> bool:
    """Whether it regroups positions into axes of given lengths, as a partition into windows does.

    torch.export may take such lengths for a rule that ties the size of the batch to theirs.
    """
    operations = [
        operation
        for module in network.modules()
        for step in (
            module.description.steps
            if isinstance(module, CompactNet)
            else module.graph
            if isinstance(module, Encoder)
            else ()
        )
        for operation in getattr(step, "operations", ())
    ]
    return any(isinstance(o, Reshape) and -1 not in o.sizes for o in operations)


# Name of a format, which is also its suffix -> function that writes it.
FORMATS: dict[str, Callable[[nn.Module, Card, Path], None]] = {
    "safetensors": _safetensors,
    "pt2": _pt2,
    "onnx": _onnx,
}
