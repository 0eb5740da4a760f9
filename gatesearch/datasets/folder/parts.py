"""Assign each frame to a part: by lists, by the column `split` of the table, or by shares."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from gatesearch.datasets.faults import first_names
from gatesearch.datasets.folder.findings import Findings
from gatesearch.datasets.folder.image_lists import read_list
from gatesearch.datasets.folder.labels import Label
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.splits import (
    PART_OF_WORD,
    PARTS,
    PartName,
    draw_parts,
    make_units,
)
from gatesearch.datasets.folder.tables import SPLIT_COLUMN, column_reference
from gatesearch.errors import UsageError

# More distinct values than this are no classes that every part could have.
_MOST_CLASSES = 256


def assign_parts(
    source: FolderSource,
    images: Mapping[str, Path],
    names: dict[str, str],
    labels: Mapping[str, Mapping[str, Label]],
    findings: Findings,
) -> dict[str, PartName]:
    """Return id -> part; frames that no list names are left out if there is a list for each part.

    Args:
        source: The folder.
        images: Id -> image.
        names: Ways to name an image -> its id.
        labels: Task -> id -> label.
        findings: Gets faults and files.

    Raises:
        UsageError: `group` cannot be read.
        DataError: A list cannot be read.
    """
    options = source.options
    listed = _listed_parts(source, images, names, findings)
    if options.table and not listed:
        listed = _split_column(options.table, images, names, findings)
    groups = _groups(options.group, images, names, findings)
    given: dict[str, PartName] = {
        frame_id: part for part in PARTS for frame_id in listed.get(part, ())
    }
    rest = [i for i in images if i not in given]
    parts = dict(given)
    features = _features(images, labels)

    def draw(frames: Iterable[str], shares: dict[PartName, float]) -> None:
        units = make_units(frames, groups=groups, features=features)
        parts.update(draw_parts(units, shares, seed=options.split_seed))

    drawn = source.validation == 0 and "validation" not in listed
    validation = options.fractions.validation if drawn else 0.0
    test = options.fractions.test if "test" not in listed else 0.0
    if "train" not in listed:
        draw(rest, {"train": 1 - validation - test, "validation": validation, "test": test})
    else:
        if "test" not in listed:
            parts |= dict.fromkeys(rest, "test")
            rest = []
        if rest:
            findings.add(
                "images in no list",
                "data",
                first_names(rest),
                "they are left out",
                count=len(rest),
                is_warning=True,
            )
        if validation:
            shares: dict[PartName, float] = {"train": 1 - validation, "validation": validation}
            draw(listed["train"], shares)
    needed = _needed_parts(source)
    _refuse_empty_parts(parts, needed, images, findings, validation=source.validation)
    _refuse_unlabelled_parts(parts, needed, labels, findings)
    _warn_of_torn_groups(parts, groups, findings)
    return parts


def _listed_parts(
    source: FolderSource, images: Mapping[str, Path], names: dict[str, str], findings: Findings
) -> dict[PartName, tuple[str, ...]]:
    options = source.options
    lists: dict[PartName, str | int] = {
        "train": options.train,
        "validation": source.validation,
        "test": options.test,
    }
    listed: dict[PartName, tuple[str, ...]] = {}
    seen: dict[str, PartName] = {}
    for part, name in lists.items():
        if not isinstance(name, str) or not name:
            continue
        path = findings.path(name)
        findings.files.add(path)
        read = read_list(path, names)
        findings.refuse_twice(read.twice, path)
        findings.refuse_unknown(read.unknown, path)
        for frame_id in read.frames:
            if frame_id in seen:
                findings.add(
                    "id in two parts",
                    frame_id,
                    f"found in {seen[frame_id]} and {part}",
                    "take it out of one of the lists",
                )
            seen.setdefault(frame_id, part)
        listed[part] = tuple(i for i in read.frames if i in images)
    return listed


def _split_column(
    name: str, images: Mapping[str, Path], names: dict[str, str], findings: Findings
) -> dict[PartName, tuple[str, ...]]:
    """Return part -> ids, as the column `split` of a table says; nothing without that column."""
    table = findings.table(name)
    if SPLIT_COLUMN not in table.columns:
        return {}
    listed: dict[PartName, list[str]] = {}
    rows = findings.rows(table, names)
    words = table.columns[SPLIT_COLUMN]
    for frame_id, row in rows.rows.items():
        word = words[row]
        if word.lower() not in PART_OF_WORD:
            findings.add(
                "unknown part",
                f"{findings.shown(table.path)}, line {table.lines[row]}",
                f"split must be train, validation or test, found '{word}'",
                "correct the cell",
            )
        elif frame_id in images:
            listed.setdefault(PART_OF_WORD[word.lower()], []).append(frame_id)
    return {part: tuple(ids) for part, ids in listed.items()}


def _groups(
    text: str, images: Mapping[str, Path], names: dict[str, str], findings: Findings
) -> dict[str, str]:
    """Return id -> name of its group."""
    if not text:
        return {}
    reference = column_reference(text)
    if reference is not None:
        if len(reference.columns) > 1:
            raise UsageError(
                f"data.group must name one column, found {len(reference.columns)} in '{text}'; "
                "name one whose values are the groups"
            )
        table = findings.table(reference.file)
        cells = table.column(reference.columns[0])
        rows = findings.rows(table, names).rows
        return {i: cells[row] for i, row in rows.items() if i in images and cells[row]}
    if "{group}" not in text:
        raise UsageError(
            f"data.group must be a pattern of ids with {{group}}, as '{{group}}_*', or a "
            f"column, as 'table.csv:patient'; found '{text}'"
        )
    pieces = re.split(r"(\{group\}|\*)", text)
    tokens = {"{group}": "(?P<group>.+?)", "*": ".*"}
    regex = re.compile("".join(tokens.get(p, re.escape(p)) for p in pieces), re.DOTALL)
    found = {i: regex.fullmatch(i) for i in images}
    odd = [i for i, match in found.items() if match is None]
    if odd:
        findings.add(
            "id without a group",
            f"data.group = '{text}'",
            first_names(odd),
            "each is a group by itself",
            count=len(odd),
            is_warning=True,
        )
    return {i: match["group"] for i, match in found.items() if match is not None}


def _needed_parts(source: FolderSource) -> tuple[PartName, ...]:
    """Parts that must have frames; a number of validation frames is taken later from train."""
    taken_later = isinstance(source.validation, int) and source.validation > 0
    return ("train", "test") if taken_later else PARTS


def _refuse_empty_parts(
    parts: Mapping[str, PartName],
    needed: tuple[PartName, ...],
    images: Mapping[str, Path],
    findings: Findings,
    *,
    validation: str | int,
) -> None:
    counts = Counter(parts.values())
    if isinstance(validation, int) and 0 < counts["train"] <= validation:
        findings.add(
            "empty part",
            "data.validation",
            f"must leave frames to train on, found {validation} of {counts['train']}",
            "lower data.validation",
        )
    empty = [part for part in needed if not counts[part]]
    if empty and images:
        shown = ", ".join(f"{part} {counts[part]}" for part in needed)
        findings.add(
            "empty part",
            " and ".join(empty),
            f"every part must have frames, found {shown} of {len(images)} images",
            "give more images, or correct the lists or data.fractions",
        )


def _refuse_unlabelled_parts(
    parts: Mapping[str, PartName],
    needed: tuple[PartName, ...],
    labels: Mapping[str, Mapping[str, Label]],
    findings: Findings,
) -> None:
    """Refuse a task without labels in a part, of which nothing could be learnt or measured."""
    needed = tuple(part for part in needed if part in parts.values())
    for task, by_id in labels.items():
        counts = Counter(part for frame_id, part in parts.items() if frame_id in by_id)
        if by_id and any(not counts[part] for part in needed):
            shown = ", ".join(f"{counts[part]} in {part}" for part in needed)
            findings.add(
                "part without labels",
                f"tasks.{task}",
                f"every part must have labels of every task, found {shown}",
                "label more frames, or correct the lists, data.fractions or data.split_seed",
            )


def _warn_of_torn_groups(
    parts: Mapping[str, PartName], groups: Mapping[str, str], findings: Findings
) -> None:
    of_group: dict[str, set[str]] = {}
    for frame_id, part in parts.items():
        if frame_id in groups:
            of_group.setdefault(groups[frame_id], set()).add(part)
    torn = [group for group, its_parts in sorted(of_group.items()) if len(its_parts) > 1]
    if torn:
        findings.add(
            "group in several parts",
            "data.group",
            first_names(torn),
            "results on test may be too good; correct the lists",
            count=len(torn),
            is_warning=True,
        )


def _features(
    images: Iterable[str], labels: Mapping[str, Mapping[str, Label]]
) -> dict[str, list[str]]:
    """List what of each frame should be in every part: labels of a task, and its classes.

    Cells with few distinct values are taken for classes.
    """
    features: dict[str, list[str]] = {i: [] for i in images}
    for task, by_id in labels.items():
        rows = [label for label in by_id.values() if isinstance(label, tuple)]
        distinct = [len(set(column)) for column in zip(*rows, strict=True)]
        for frame_id, label in by_id.items():
            if frame_id not in features:
                continue
            features[frame_id].append(task)
            if isinstance(label, tuple):
                features[frame_id] += [
                    f"{task}\n{column}\n{cell}"
                    for column, (cell, count) in enumerate(zip(label, distinct, strict=True))
                    if cell and count <= _MOST_CLASSES
                ]
    return features
