"""Write a study from a user's files: look at them, guess, and say why."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatesearch.datasets.faults import Fault
from gatesearch.datasets.folder.findings import Findings
from gatesearch.datasets.folder.fit import Fit
from gatesearch.datasets.folder.guess import Guess
from gatesearch.datasets.folder.guess_columns import guess_from_columns
from gatesearch.datasets.folder.guess_files import guess_from_files, survey_labels
from gatesearch.datasets.folder.listing import list_frames
from gatesearch.datasets.folder.options import FolderOptions, FolderSource
from gatesearch.datasets.folder.patterns import find_files, image_pattern, label_pattern
from gatesearch.datasets.folder.splits import PARTS
from gatesearch.datasets.folder.tables import column_reference, image_names, read_table, rows_by_id
from gatesearch.datasets.image_files import peek_image
from gatesearch.datasets.orientation import upright_size
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError
from gatesearch.study import TaskSpec
from gatesearch.study.validation import validated
from gatesearch.tasks import Task, build_task, build_tasks
from gatesearch.tasks.labels import Size

_HEADERS = 256  # images whose size is looked at
_SAME_SHAPE = 0.03  # relative difference of aspect ratios that no one sees
_LONG_SIDE, _LONG_SIDE_ACCELERATED = 128, 512  # pixels
_STEP = 8
# Steps of training that a first study takes: minutes per network on two cores, and on a GPU.
_STEPS, _STEPS_ACCELERATED = 2000, 20_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 400


@dataclass(frozen=True)
class Wishes:
    """What the user says of a study.

    Attributes:
        name: Its name.
        images: Pattern of the images.
        labels: Task name -> pattern, or columns of a table.
        kinds: Task name -> kind, where it is not to be guessed.
        size: Height and width of the protocol; None to choose them.
        lists: Part -> file that lists its frames.
        group: As in `FolderOptions`.
    """

    name: str
    images: str
    labels: Mapping[str, str]
    kinds: Mapping[str, str] = field(default_factory=dict)
    size: Size | None = None
    lists: Mapping[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Draft:
    """A study that was written.

    Attributes:
        text: Its TOML, but for a first line with the command that runs it.
        reasons: What was guessed and why, (subject, text) a line each.
        faults: What is wrong with the listing of the files.
    """

    text: str
    reasons: tuple[tuple[str, str], ...]
    faults: tuple[Fault, ...]


def draft_study(wishes: Wishes, root: Path, *, accelerated: bool) -> Draft:
    """Look at files and write a study.

    Args:
        wishes: What the user says; paths are relative to `root`.
        root: Folder of the study's file.
        accelerated: Whether there is a GPU to train on.

    Raises:
        UsageError: A pattern or column that cannot be read, or labels of no known kind.
        DataError: Nothing matches, or a file cannot be read.
    """
    images = find_files(image_pattern(wishes.images), root).files
    if not images:
        raise DataError(
            f"images must be matched by '{wishes.images}', found none below {root}; correct the "
            "pattern, and put it in quotes so that the shell leaves it as it is"
        )
    first = next(iter(images))
    reasons = [("images", f"{len(images)} match; '{first}' is the id of the first")]
    size, fit, why = _choose_size(list(images.values()), wishes.size, accelerated=accelerated)
    reasons.append(("size", why))
    guesses = {}
    for task, label in wishes.labels.items():
        guesses[task] = _guess(task, label, wishes.kinds.get(task, ""), images, root)
        options = "".join(
            f", {key} = {_shortened(_value(value))}" for key, value in guesses[task].options.items()
        )
        reasons.append((task, f"{guesses[task].kind}{options}: {'; '.join(guesses[task].reasons)}"))
    source = _source(wishes, guesses, root, size, fit)
    listing = list_frames(source)
    counts = {part: len(listing.frames[part]) for part in PARTS}
    how = "the lists given" if wishes.lists else "10 % and 20 % drawn by seed 0"
    kept = f", groups of '{wishes.group}' kept together" if wishes.group else ""
    shown = ", ".join(f"{counts[part]} {part}" for part in PARTS)
    reasons.append(("split", f"{shown}: {how}{kept}"))
    text = _text(
        wishes, guesses, source.tasks, size, fit, frames=counts["train"], accelerated=accelerated
    )
    return Draft(text, tuple(reasons), listing.faults)


def _choose_size(
    paths: Sequence[Path], wished: Size | None, *, accelerated: bool
) -> tuple[Size, Fit, str]:
    """Choose the size of the protocol and how frames get it, and say why."""
    sizes = Counter(
        size for size in map(_size_of, spread_evenly(paths, _HEADERS)) if size is not None
    )
    if not sizes:
        raise DataError(f"no header of the images can be read, as of {paths[0]}; convert them")
    (height, width), _ = sizes.most_common(1)[0]
    longest = max(height, width)
    limit = _LONG_SIDE_ACCELERATED if accelerated else _LONG_SIDE
    if wished is not None:
        size = wished
        why = "as given"
    elif longest <= limit:
        size, why = (height, width), "that of most images"
    else:
        size = _stepped(height * limit / longest), _stepped(width * limit / longest)
        device = "a GPU" if accelerated else "no GPU"
        why = f"{height}x{width} of most images, made smaller for {device}"
    aspect = size[1] / size[0]
    same = all(abs(w / h / aspect - 1) <= _SAME_SHAPE for h, w in sizes)
    fit: Fit = "stretch" if same else "pad"
    shapes = "all have this shape" if same else "shapes differ, so frames are padded"
    return size, fit, f"{size[0]}x{size[1]}: {why}; {shapes}"


def _stepped(pixels: float) -> int:
    return max(_STEP, round(pixels / _STEP) * _STEP)


def _size_of(path: Path) -> Size | None:
    try:
        image = peek_image(path)
    except DataError:
        return None
    return None if image is None else upright_size(image)


def _guess(task: str, label: str, kind: str, images: Mapping[str, Path], root: Path) -> Guess:
    reference = column_reference(label)
    if reference is None:
        files = find_files(label_pattern(label), root).files
        paths = [path for frame_id, path in files.items() if frame_id in images]
        if not paths:
            raise DataError(
                f"the label '{label}' of {task} must match files of the images, found none, such "
                f"as {label.replace('{id}', next(iter(images)))}; correct the pattern"
            )
        return guess_from_files(task, survey_labels(paths, kind=kind), kind=kind)
    table = read_table(root / reference.file)
    names = table.value_columns(reference.columns)
    rows = rows_by_id(table, image_names(dict(images), root)).rows
    if not rows:
        raise DataError(
            f"{table.path} must name images in its column '{table.id_column}', found "
            f"'{table.columns[table.id_column][0]}' where ids are like '{next(iter(images))}'; "
            "correct it"
        )
    columns = {name: [table.columns[name][row] for row in rows.values()] for name in names}
    if kind and build_task(kind, {}, where=f"tasks.{task}").storage.dense and len(names) == 1:
        findings = Findings(root)
        cells = filter(None, columns[names[0]])
        paths = [findings.path_beside(cell, table.path) for cell in cells]
        return guess_from_files(task, survey_labels(paths, kind=kind), kind=kind)
    return guess_from_columns(task, columns, kind=kind)


def _source(
    wishes: Wishes, guesses: Mapping[str, Guess], root: Path, size: Size, fit: Fit
) -> FolderSource:
    options: FolderOptions = validated(FolderOptions, _data(wishes, fit), where="data")
    specs = {
        name: validated(TaskSpec, {"kind": guess.kind, **guess.options}, where=f"tasks.{name}")
        for name, guess in guesses.items()
    }
    return FolderSource(
        name=wishes.name, root=root, options=options,
        validation=wishes.lists.get("validation", 0), tasks=build_tasks(specs),
        labels=wishes.labels, size=size,
    )  # fmt: skip


def _data(wishes: Wishes, fit: Fit) -> dict[str, Any]:
    lists = {part: name for part, name in wishes.lists.items() if part != "validation"}
    group = {"group": wishes.group} if wishes.group else {}
    return {"images": wishes.images, **lists, **group, "fit": fit}


def _text(
    wishes: Wishes, guesses: Mapping[str, Guess], tasks: Mapping[str, Task], size: Size, fit: Fit,
    *, frames: int, accelerated: bool,
) -> str:  # fmt: skip
    has_dense = any(task.dense for task in tasks.values())
    # Mirroring would call a left eye a right one.
    has_sides = any(
        guess.kind == "keypoints" and "flip_pairs" not in guess.options
        for guess in guesses.values()
    )
    batch = max(2, min(16, frames // 4))
    steps = _STEPS_ACCELERATED if accelerated else _STEPS
    epochs = math.ceil(steps * batch / max(frames, 1))
    epochs = min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS)
    device = "a GPU" if accelerated else "no GPU"
    lines = [
        f"name = {_value(wishes.name)}",
        'methods = ["stl", "mtl", "cross_stitch", "mtan"]',
        "",
        "[protocol]",
        f"name = {_value(f'{wishes.name}-{size[0]}x{size[1]}')}",
        f"size = [{size[0]}, {size[1]}]  # height, width",
        "",
    ]
    for name, guess in guesses.items():
        lines += [f"# {_comment(reason)}" for reason in guess.reasons]
        lines += [f"[tasks.{_key(name)}]", f"kind = {_value(guess.kind)}"]
        lines.append(f"label = {_value(wishes.labels[name])}")
        lines += [f"{key} = {_value(value)}" for key, value in guess.options.items()]
        if guess.alternative is not None:
            meaning, options = guess.alternative
            lines.append(f"# {meaning}, instead:")
            lines += [f"# {key} = {_value(value)}" for key, value in options.items()]
        lines.append("")
    lines += [
        "# Files are relative to the folder of this file.",
        "[data]",
        'dataset = "folder"',
        *(f"{key} = {_value(value)}" for key, value in _data(wishes, fit).items() if key != "fit"),
    ]
    if "validation" in wishes.lists:
        lines.append(f"validation = {_value(wishes.lists['validation'])}")
    if set(wishes.lists) != set(PARTS):
        lines.append("fractions = { validation = 0.1, test = 0.2 }  # of parts without a list")
        lines.append("split_seed = 0")
    lines += [
        f'fit = "{fit}"  # stretch, crop, pad (padding has no labels) or none',
        "",
        f"# For {device}; width 1.0 is the whole ResNet-18.",
        "[model]",
        'backbone = "resnet18"',
        f"width = {'1.0' if accelerated else '0.25'}",
        f"output_stride = {8 if has_dense else 32}",
        'head = "light"',
        f"head_channels = {256 if accelerated else 64}",
        "",
        f"# {epochs} epochs of {frames} frames are {epochs * (frames // batch)} steps.",
        "[training]",
        f"epochs = {epochs}",
        f"batch_size = {batch}",
        'optimizer = "adamw"',
        "lr = 2e-3",
        "weight_decay = 0.05",
        f"augment = {{ flip = {_value(has_dense and not has_sides)} }}  # mirrored left to right",
        "",
        "[options.cross_stitch]",
        'start = "study"  # as all others; "stl" begins with the single-task networks',
        "",
        "[search]",
        "lambda_s = [0.1, 10.0]  # pressure towards sharing",
        "startup = 4",
        "",
        "# A first look: gatesearch run --study FILE --n-trials 1 --set preset=quick",
        "[presets.quick]",
        "training.epochs = 1",
    ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    """Write a value as TOML does.

    >>> _value({"a": [1, True, "x"]})
    '{ a = [1, true, "x"] }'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
