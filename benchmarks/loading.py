"""Batches, augmentation and normalisation as a share of the training step they feed.

Frames are random numbers at the sizes of `nyud-small`; every operation costs the same on them as on
real frames.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
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
from gatesearch.training.split_data import normalize

BAR = 5.0
ROUNDS = 9


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        study = gs.load_study("nyud-small")
        pack = random_pack(study, Path(folder) / "random")
        figures = measure_steps(study, pack, (("interrogate", BAR), ("mtl", None)))
        with small_windows():
            streamed = measure_steps(study, pack, (("interrogate", BAR),))
    return figures + [replace(figure, name=f"{figure.name}, streamed") for figure in streamed]


def measure_steps(
    study: Study, pack: Pack, methods: Sequence[tuple[str, float | None]]
) -> list[Figure]:
    """Share of loading in the steps of methods, each with its bar."""
    tasks = build_tasks(study.tasks)
    runtime = resolve_runtime("auto", "auto")
    frames = SplitData(
        pack, "train", indices=range(pack.frames("train")), tasks=tasks,
        size=study.protocol.size,
    )  # fmt: skip
    spec = study.training
    generator = torch.Generator().manual_seed(0)
    batches = itertools.chain.from_iterable(
        frames.shuffled(spec.batch_size, generator) for _ in itertools.count()
    )

    def load() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = augment(next(batches), tasks, generator=generator, **spec.augment.model_dump())
        return runtime.image(normalize(batch.pop("image"))), runtime.tensors(batch)

    figures = []
    for method, bar in methods:
        model = runtime.place(gs.build_model(study, method)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, foreach=True)
        image, labels = load()

        def step() -> None:
            with runtime.autocast():
                outputs = model(image)  # noqa: B023
            losses = [task.loss(outputs[t].float(), labels[t]) for t, task in tasks.items()]  # noqa: B023
            optimizer.zero_grad(set_to_none=True)  # noqa: B023
            torch.stack(losses).sum().backward()
            optimizer.step()  # noqa: B023

        ratio, a, b = in_turns(load, step, rounds=ROUNDS)
        detail = f"{1e3 * a:.1f} ms beside {1e3 * b:.0f} ms ({runtime.precision})"
        # The share of the whole step, loading included.
        figures.append(
            Figure(f"loading in a {method} step", 100 * ratio / (1 + ratio), bar, "%", detail)
        )
    return figures


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
