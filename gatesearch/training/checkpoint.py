"""Checkpoints of a training on disk: the newest undamaged one is found, whatever happened."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatesearch.errors import one_line
from gatesearch.files import FileRefusedError, write_atomic
from gatesearch.stopping import Stop, never
from gatesearch.tensor_files import read_tensors

_NAME = re.compile(r"checkpoint-(\d{1,12})\.safetensors")
_MAX_KEPT = 2

Tell = Callable[[str], None]


class Preempted(Exception):  # noqa: N818 - nothing went wrong
    """A training was asked to stop; the last checkpoint holds it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training, from which it can go on.

    Attributes:
        state: Everything but tensors, as JSON can hold it.
        tensors: Name -> tensor, on the processor.
    """

    state: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def ignore_message(message: str) -> None:
    """Do nothing with a message: the default where a caller wants to hear none."""


class Checkpoints:
    """The checkpoints of one training in a folder of its own; the last two are kept.

    Args:
        folder: Where they are; made with the first checkpoint.
        identity: Text that tells this training from others; checkpoints of another are not read.
        seconds: Time between two checkpoints.
        stop: Returns True once the training was asked to stop.
        tell: Receives a message for each checkpoint that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        seconds: float = 300.0,
        stop: Stop = never,
        tell: Tell = ignore_message,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.seconds = seconds
        self._stop = stop
        self._tell = tell
        self._since = time.monotonic()
        self._refused: set[Path] = set()

    def newest(self) -> Checkpoint | None:
        """Read the newest undamaged checkpoint; a message says why others were passed over."""
        complaints = []
        newest = None
        for path in reversed(self._paths()):
            try:
                newest = self._read(path)
            # Its state can be any text, nested too deep for example.
            except Exception as error:
                reason = error.fault if isinstance(error, FileRefusedError) else one_line(error)
                complaints.append(f"the checkpoint {path} cannot be used: {reason}")
                self._refused.add(path)
            else:
                break
        instead = f"going on from {path.name}" if newest else "there is no older one to go on from"
        for complaint in complaints:
            self._tell(f"{complaint}; {instead}")
        return newest

    def due(self) -> bool:
        """Return whether a checkpoint should be kept now: enough time has passed, or `stopping`."""
        return time.monotonic() - self._since >= self.seconds or self.stopping()

    def stopping(self) -> bool:
        """Return whether the training was asked to stop."""
        return self._stop()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the next checkpoint to disk, then remove all but the last two.

        Raises:
            OSError: It cannot be written; the earlier ones stay.
        """
        from safetensors.torch import save

        state = json.dumps(checkpoint.state)
        metadata = {
            "identity": self.identity,
            "state": state,
            "sha256": _digest(state, checkpoint.tensors),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max((_number(path) for path in self._paths()), default=0) + 1
        path = self.folder / f"checkpoint-{number}.safetensors"
        write_atomic(path, save(dict(checkpoint.tensors), metadata))
        self._since = time.monotonic()
        whole = [path for path in self._paths() if path not in self._refused]
        self._remove(keep=whole[-_MAX_KEPT:])

    def clear(self) -> None:
        """Remove all checkpoints, once the training's result is kept."""
        self._remove(keep=[])
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        """List the files of the checkpoints, oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in entries if _NAME.fullmatch(path.name)), key=_number)

    def _remove(self, *, keep: list[Path]) -> None:
        leftovers = self.folder.glob(".checkpoint-*.safetensors.*")
        for path in [*self._paths(), *leftovers]:
            if path not in keep and not path.is_dir():
                path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Checkpoint:
        # Memory-mapped, so that nothing is allocated before identity and checksum are verified.
        mapped, metadata = read_tensors(path)
        identity = metadata.get("identity")
        if identity != self.identity:
            raise ValueError(f"it is of {identity!r}, not of {self.identity!r}")
        text = metadata.get("state", "")
        if _digest(text, mapped) != metadata.get("sha256"):
            raise ValueError("its checksum is wrong")
        state = json.loads(text)
        if not isinstance(state, dict):
            raise ValueError("its state must be an object")
        return Checkpoint(state, {name: t.clone() for name, t in mapped.items()})


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class PhaseCheckpoints:
    """Where one phase of a training keeps its checkpoints, and from which one it goes on.

    Attributes:
        checkpoints: Those of the whole training.
        name: Name of the phase.
        context: JSON that is kept with every checkpoint of the phase.
        resume: The checkpoint to go on from; None begins the phase.
    """

    checkpoints: Checkpoints
    name: str
    context: Mapping[str, Any]
    resume: Checkpoint | None = None
