"""Compact networks in files: safetensors and JSON, never pickle."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from gatesearch.errors import DataError, UsageError
from gatesearch.library.own_heads import HeadLike, accept_heads
from gatesearch.pruning import CompactNet, load_compact, save_compact
from gatesearch.pruning.compact import DESCRIPTION, WEIGHTS


def save(net: CompactNet, stem: str | Path) -> None:
    """Write a compact network as STEM.safetensors (weights) and STEM.json (all else).

    Classes of heads are code, which no file holds: `gs.load` is given new modules for heads of
    your own, and fills them with the saved weights.

    Args:
        net: A network of `gs.extract`.
        stem: Path of the files without suffix, such as `networks/person-1.3xMTL`. Its folder is
            made where it is missing.

    Raises:
        UsageError: Another network, one that is not in float32, or a head with a state that is no
            tensor. Nothing is written.
        DataError: The files cannot be written.
    """
    if not isinstance(net, CompactNet):
        raise UsageError(
            f"save takes a compact network, found {type(net).__name__}; cut one with gs.extract, "
            "or keep a supernet by its state_dict()"
        )
    path = _stem(stem)
    for name, parameter in (*net.convs.named_parameters(), *net.mixes.named_parameters()):
        if parameter.dtype != torch.float32:
            raise UsageError(
                f"save takes a network in float32, found {parameter.dtype} as {name}; save "
                "net.float(), and convert what gs.load returns"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_compact(net, path)
    except OSError as error:
        raise DataError(
            f"{path}{WEIGHTS} cannot be written ({error.strerror}); name another place"
        ) from error


def load(stem: str | Path, heads: Mapping[str, HeadLike] | None = None) -> CompactNet:
    """Read a compact network that `gs.save` wrote, or that a search kept, in evaluation mode.

    Args:
        stem: Path of its files without suffix, such as `runs/mine/trials/0003/model`.
        heads: Task -> head, for heads of your own: modules built as before training, whose weights
            are replaced by the saved ones; not needed for heads of a study's `model.head`.

    Returns:
        The network, on the CPU.

    Raises:
        UsageError: Heads are missing, or given for a task that has none of your own.
        DataError: A file is missing or damaged, or a head has other weights than the saved one.

    >>> import tempfile, torch
    >>> import gatesearch as gs
    >>> small = gs.encoder("resnet18", width=0.1, output_stride=32)
    >>> head = lambda: torch.nn.Conv2d(small.channels, 1, kernel_size=1)
    >>> net = gs.extract(gs.InterroGate(small, {"mask": head()}))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gs.save(net, f"{folder}/net")
    ...     again = gs.load(f"{folder}/net", heads={"mask": head()})
    >>> image = torch.randn(1, 3, 64, 64)
    >>> torch.equal(again(image)["mask"], net(image)["mask"])
    True
    """
    given: dict[str, nn.Module] = {} if not heads else accept_heads(heads)
    return load_compact(_stem(stem), given)


def _stem(given: str | Path) -> Path:
    if not isinstance(given, str | Path) or not Path(given).name:
        raise UsageError(
            "a network is kept in files named by a path without suffix, such as networks/best, "
            f"found {given!r:.100}"
        )
    path = Path(given)
    return path.with_suffix("") if path.suffix in (WEIGHTS, DESCRIPTION) else path
