"""A study of two tasks on a few rendered frames, trained in moments."""

from collections.abc import Callable, Iterable
from pathlib import Path

from gatesearch.events import Emit, Event, Progress
from gatesearch.study import Study, load_study

TOML = """
name = "tiny"
methods = ["stl", "mtl"]
report_frames = 1
protocol = { name = "scenes-16", size = [16, 16] }
tasks.semseg = { kind = "semseg", classes = 8 }
tasks.depth = { kind = "depth" }
data = { dataset = "scenes", train_frames = 10, test_frames = 2, validation = 4 }
model.backbone = "cnn4"
model.width = 0.05
model.output_stride = 16
model.head = "light"
model.head_channels = 4
training = { epochs = 2, batch_size = 3, lr = 1e-3, precision = "fp32", memory_format = "nchw" }
search = { lambda_s = [0.1, 10.0], tau = [0.2, 0.8], startup = 1 }
"""


# On a backbone with residual blocks, which some methods leave out or branch at.
RESIDUAL = ("model.backbone=resnet18", "model.output_stride=32")


def tiny(folder: Path, *overrides: str) -> Study:
    path = folder / "tiny.toml"
    path.write_text(TOML)
    return load_study(path, overrides)


def residual(folder: Path, *overrides: str) -> Study:
    return tiny(folder, *RESIDUAL, *overrides)


def ignore(event: Event) -> None:
    """Nobody listens."""


def epochs_of(events: Iterable[Event]) -> list[tuple[str, int]]:
    """(what was trained, epoch done) in order."""
    return [
        (event.stage, event.done)
        for event in events
        if isinstance(event, Progress) and event.unit == "epochs"
    ]


def interrupted_at(stage: str, done: int, hear: Callable[[Event], None] = ignore) -> Emit:
    """Press Ctrl-C once that epoch of that training is done."""

    def emit(event: Event) -> None:
        hear(event)
        if isinstance(event, Progress) and (event.stage, event.done) == (stage, done):
            raise KeyboardInterrupt

    return emit
