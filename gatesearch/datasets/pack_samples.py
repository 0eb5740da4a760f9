"""`gatesearch.pack`: makes a pack of any data set whose samples are dicts."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from gatesearch.datasets.pack_manifest import IMAGE, SPLITS, SplitName
from gatesearch.datasets.pack_reader import Pack, open_pack
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.sample_sources import Frame, SampleReader, Source, open_sources
from gatesearch.errors import UsageError, unknown
from gatesearch.events import Emit, Event
from gatesearch.strict import Strict
from gatesearch.study import TaskSpec
from gatesearch.study.definition import TaskName
from gatesearch.study.validation import validated
from gatesearch.tasks import build_tasks


def pack(
    dataset: object,
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    to: str | Path,
    size: tuple[int, int] | None = None,
    validation: object = None,
    test: object = None,
    image: str = IMAGE,
    seed: int = 0,
    source: str = "",
    processes: int = 1,
    emit: Emit | None = None,
) -> Pack:
    """Make a pack of a data set, which a study then names by `data.dataset = "pack"`.

    A data set is one of: a map-style `torch.utils.data.Dataset` or a sequence; a Hugging Face
    `Dataset`; or an iterable, such as a WebDataset or a generator, which is read once. Samples are
    dicts with an image, and with labels by name; a label that is absent or None is not known. See
    `gatesearch.datasets.samples` for the types that images and labels may have.

    Args:
        dataset: The training part; or a mapping, such as a `DatasetDict`, with the keys `train`,
            `test` and perhaps `validation`.
        tasks: Task -> table, as in a study's `[tasks.NAME]`: `kind`, `classes` and options of the
            kind. `label` is the key of the samples with the labels, by default the task's name; the
            field of the pack has the task's name.
        to: Folder of the pack. An old pack there stays until the new one is whole.
        size: Height and width to which frames are resized; None if all samples have one size.
        validation: Data set of the validation part; or the fraction of the training part that
            becomes it. None for none: a study then takes frames of the training part.
        test: The same for the test part; every pack needs one.
        image: Key of the samples with the image.
        seed: Seed by which samples are drawn for fractions.
        source: Says in the pack where the samples come from.
        processes: Number of processes that read samples of map-style data sets. More than 1 need a
            picklable data set and, in a script, `if __name__ == "__main__":`.
        emit: Receives `Progress` events.

    Returns:
        The opened pack.

    Raises:
        UsageError: Data sets, tasks or fractions that are none.
        DataError: Samples that are not as they must be, all of which are named by their index; or
            the folder cannot be written. Nothing is left behind.

    >>> import tempfile, numpy as np
    >>> grey = [{"image": np.full((4, 6), i, np.uint8), "mask": np.eye(4, 6)} for i in range(5)]
    >>> tasks = {"shape": {"kind": "semseg", "classes": 2, "label": "mask"}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = pack(grey, tasks, to=f"{folder}/grey", test=0.2)
    ...     (made.frames("train"), made.frames("test"), made.size, made.label_fields)
    (4, 1, (4, 6), ['shape'])
    """
    specs = validated(_Tasks, {"tasks": tasks}, where="pack").tasks
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UsageError(f"size must be height and width of at least 1 pixel, found {size}")
    parts, fractions = _parts(dataset, validation=validation, test=test)
    fields = build_tasks(specs)
    keys = {name: spec.label or name for name, spec in specs.items()}
    reader = SampleReader(image, keys, fields, size, resizes=size is not None)
    folder, say = Path(to), emit or _ignore
    with ExitStack() as stack:
        sources, reader = open_sources(parts, reader, folder, stack)
        assert reader.size is not None
        write_pack(
            folder,
            dataset="pack",
            size=reader.size,
            fields=fields,
            splits=_splits(sources, fractions, seed),
            source=source or f"gatesearch.pack of {type(dataset).__qualname__}",
            processes=processes,
            emit=say,
        )
    return open_pack(folder)


class _Tasks(Strict):
    tasks: dict[TaskName, TaskSpec] = Field(min_length=1)


def _ignore(event: Event) -> None:
    pass


def _parts(
    dataset: object, *, validation: object, test: object
) -> tuple[dict[SplitName, object], dict[SplitName, float]]:
    """Sort what was given into data sets of parts, and fractions of the training part.

    Raises:
        UsageError: Parts that are no data sets, unknown, given twice, or missing.
    """
    parts: dict[SplitName, object] = {"train": dataset}
    if isinstance(dataset, Mapping):
        for name in dataset:
            if name not in SPLITS:
                raise UsageError(
                    f"{unknown('part', str(name), SPLITS)}; name parts yourself, as in "
                    "pack(data['train'], tasks, validation=data['dev'], test=data['eval'])"
                )
        parts = {name: dataset[name] for name in SPLITS if name in dataset}
        if "train" not in parts:
            raise UsageError("a mapping of data sets needs the key 'train', found none")
    fractions: dict[SplitName, float] = {}
    given: dict[SplitName, object] = {"validation": validation, "test": test}
    for name, value in given.items():
        if value is None:
            continue
        if name in parts:
            raise UsageError(f"{name} is given by the mapping and by {name}=; leave one out")
        if isinstance(value, int | float):
            if isinstance(value, bool) or not 0 < value < 1:
                raise UsageError(
                    f"{name} must be a data set, or a fraction between 0 and 1 of the training "
                    f"part, found {value}"
                )
            fractions[name] = float(value)
        else:
            parts[name] = value
    if "test" not in parts and "test" not in fractions:
        raise UsageError(
            "a pack needs a test part, on which networks are measured in the end; give test= a "
            "data set, or a fraction of the training part, as test=0.2"
        )
    return parts, fractions


def _splits(
    sources: Mapping[SplitName, Source], fractions: Mapping[SplitName, float], seed: int
) -> dict[SplitName, SplitFrames]:
    """Draw the parts that are fractions of the training part; the others are whole.

    Raises:
        UsageError: Nothing is left to train on.
    """
    splits = {
        name: SplitFrames(source.ids, source)
        for name, source in sources.items()
        if name != "train" or not fractions
    }
    if fractions:
        train = sources["train"]
        count = len(train.ids)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        taken = 0
        shares: dict[SplitName, list[int]] = {}
        for name, fraction in fractions.items():
            wanted = max(1, round(fraction * count))
            shares[name] = order[taken : taken + wanted]
            taken += wanted
        if taken >= count:
            raise UsageError(
                f"fractions must leave samples to train on: {taken} of {count} are taken; lower "
                f"{' and '.join(fractions)}, or give more samples"
            )
        shares["train"] = order[taken:]
        splits |= {name: _share(train, sorted(share)) for name, share in shares.items()}
    return splits


def _share(source: Source, indices: Sequence[int]) -> SplitFrames:
    return SplitFrames([source.ids[i] for i in indices], _Share(source, indices))


@dataclass(frozen=True)
class _Share:
    """Some frames of a source, in the order of `indices`."""

    source: Source
    indices: Sequence[int]

    def __call__(self, index: int) -> Frame:
        return self.source(self.indices[index])
