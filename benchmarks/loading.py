"""How much longer training takes because its batches must be read, augmented and normalised.

The loop of a training, whose batches are made ahead in a thread, is timed in turns with the same
steps on one batch that is there already. Frames are random numbers at the sizes of `nyud-small`;
every operation costs the same on them as on real frames.
"""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.plain_loading import small_windows
from gatesearch.datasets.pack_manifest import Frame
from gatesearch.datasets.pack_reader import Pack, open_pack
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.study import Study
from gatesearch.tasks import build_tasks
from gatesearch.training import SplitData, resolve_runtime
from gatesearch.training.augment import augment
from gatesearch.training.prefetch import prefetch
from gatesearch.training.split_data import Batch, normalize

BAR = 5.0
ROUNDS = 9
STEPS = 8
METHODS = ("interrogate", "mtl")


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        study = gs.load_study("nyud-small")
        pack = random_pack(study, Path(folder) / "random")
        figures = [_measure(study, pack, method) for method in METHODS]
        with small_windows():
            streamed = [_measure(study, pack, method) for method in METHODS]
    return figures + [replace(figure, name=f"{figure.name}, streamed") for figure in streamed]


def _measure(study: Study, pack: Pack, method: str) -> Figure:
    """Share of the time of a training that goes by because of its batches."""
    tasks = build_tasks(study.tasks)
    runtime = resolve_runtime("auto", "auto")
    frames = SplitData(
        pack, "train", indices=range(pack.frames("train")), tasks=tasks,
        size=study.protocol.size,
    )  # fmt: skip
    spec = study.training
    generator = torch.Generator().manual_seed(0)
    epochs = (frames.shuffled(spec.batch_size, generator) for _ in itertools.count())

    def change(batch: Batch, draws: torch.Generator) -> Batch:
        batch = runtime.tensors(batch)
        return augment(batch, tasks, generator=draws, **spec.augment.model_dump())

    batches = prefetch(itertools.chain.from_iterable(epochs), change, generator)
    model = runtime.place(gs.build_model(study, method)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, foreach=True)

    def step(batch: Batch, image: torch.Tensor) -> None:
        with runtime.autocast():
            outputs = model(image)
        losses = [task.loss(outputs[t].float(), batch[t]) for t, task in tasks.items()]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimizer.step()

    def image_of(batch: Batch) -> torch.Tensor:
        return runtime.image(normalize(batch["image"]))

    def train() -> None:
        for batch in itertools.islice(batches, STEPS):
            step(batch, image_of(batch))

    kept = next(batches)
    kept_image = image_of(kept)

    def train_on_one() -> None:
        for _ in range(STEPS):
            step(kept, kept_image)

    ratio, a, b = in_turns(train, train_on_one, rounds=ROUNDS)
    detail = (
        f"{1e3 * a / STEPS:.1f} ms a step, {1e3 * b / STEPS:.1f} ms without ({runtime.precision})"
    )
    return Figure(f"loading in a {method} step", 100 * (1 - 1 / ratio), BAR, "%", detail)


def random_pack(study: Study, folder: Path, *, train: int = 256, test: int = 4) -> Pack:
    """A pack of random frames with all labels of a study."""
    height, width = study.protocol.size
    classes = study.tasks["semseg"].classes
    random = np.random.default_rng(0)

    def frames(count: int) -> Iterator[Frame]:
        for _ in range(count):
            normals = random.normal(size=(height, width, 3))
            normals /= np.linalg.norm(normals, axis=2, keepdims=True)
            yield {
                "image": random.integers(0, 256, (height, width, 3), dtype=np.uint8),
                "semseg": random.integers(0, classes, (height, width), dtype=np.uint8),
                "depth": random.uniform(0.5, 10, (height, width)).astype(np.float32),
                "normals": normals.astype(np.float16),
            }

    counts = {"train": train, "test": test}
    write_pack(
        folder,
        dataset="random",
        size=(height, width),
        fields=build_tasks(study.tasks),
        splits={
            name: SplitFrames([f"{name}-{i}" for i in range(n)], frames(n))
            for name, n in counts.items()
        },
        source="random numbers",
        emit=lambda event: None,
    )
    return open_pack(folder)
