"""Which frames a folder has, where their labels lie, and in which part each is.

No image is opened here: names, tables and lists are compared, and all their faults gathered.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatesearch.datasets.faults import Fault, first_names, shown_path
from gatesearch.datasets.folder.image_lists import read_list
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.patterns import (
    LONGEST_ID,
    Matches,
    find_files,
    image_pattern,
    label_pattern,
)
from gatesearch.datasets.folder.splits import (
    PART_OF_WORD,
    PARTS,
    PartName,
    draw_parts,
    make_units,
)
from gatesearch.datasets.folder.tables import (
    SPLIT_COLUMN,
    RowsById,
    Table,
    column_reference,
    image_names,
    read_table,
    rows_by_id,
)
from gatesearch.errors import UsageError

# More distinct values than this are no classes that every part could have.
_MOST_CLASSES = 256

Label = Path | tuple[str, ...]  # a file, or cells of a table


@dataclass(frozen=True)
class ListedFrame:
    """A frame.

    Attributes:
        id: Its id.
        image: File of its image.
        labels: Task name -> where its label is; tasks without one are left out.
    """

    id: str
    image: Path
    labels: Mapping[str, Label]


@dataclass(frozen=True)
class Listing:
    """All frames of a folder.

    Attributes:
        frames: Part -> its frames, by id.
        faults: What is wrong, and warnings.
        digest: Changes whenever a file is added, removed or written.
    """

    frames: Mapping[PartName, tuple[ListedFrame, ...]]
    faults: tuple[Fault, ...]
    digest: str

    @property
    def is_faulty(self) -> bool:
        """Whether the frames cannot be used."""
        return any(not fault.is_warning for fault in self.faults)

    def all_frames(self) -> tuple[ListedFrame, ...]:
        """Frames of all parts, in the parts' order."""
        return tuple(frame for part in PARTS for frame in self.frames.get(part, ()))


def list_frames(source: FolderSource) -> Listing:
    """List the frames of a folder.

    Raises:
        UsageError: A pattern, or a reference to a column, that cannot be read.
        DataError: A table or list that cannot be read.
    """
    return _Lister(source).list()


@dataclass
class _Lister:
    """Gathers faults while it looks."""

    source: FolderSource
    faults: list[Fault] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    tables: dict[Path, Table] = field(default_factory=dict)
    rows: dict[Path, RowsById] = field(default_factory=dict)

    def list(self) -> Listing:
        images, manifest = self._images()
        names = image_names(images, self.source.root)
        labels = {task: self._labels(task, images, names) for task in self.source.tasks}
        bare = [i for i in images if not any(i in by_id for by_id in labels.values())]
        if images and len(bare) < len(images):
            if bare:
                self._add(
                    "images with no label",
                    self.source.options.images or "data.table",
                    f"no task has a label of {first_names(bare)}",
                    "they are left out; add their labels",
                    count=len(bare),
                    is_warning=True,
                )
            left_out = set(bare)
            images = {i: path for i, path in images.items() if i not in left_out}
        parts = self._parts(images, manifest, names, labels)
        frames: dict[PartName, tuple[ListedFrame, ...]] = {
            part: tuple(
                ListedFrame(
                    i, images[i], {t: by_id[i] for t, by_id in labels.items() if i in by_id}
                )
                for i in sorted(images)
                if parts.get(i) == part
            )
            for part in PARTS
        }
        return Listing(frames, tuple(self.faults), self._digest())

    def _add(
        self,
        kind: str,
        place: str,
        found: str,
        cure: str,
        *,
        count: int = 1,
        is_warning: bool = False,
    ) -> None:
        self.faults.append(Fault(kind, place, found, cure, count, is_warning))

    def _path(self, name: str) -> Path:
        return Path(os.path.normpath(self.source.root / name))

    def _table(self, name: str) -> Table:
        path = self._path(name)
        if path not in self.tables:
            self.files.add(path)
            self.tables[path] = read_table(path)
        return self.tables[path]

    def _rows(self, table: Table, names: dict[str, str]) -> RowsById:
        """Find the row of each image; the faults of a table's rows are told once."""
        if table.path not in self.rows:
            self.rows[table.path] = rows_by_id(table, names)
            self._refuse_twice(self.rows[table.path].twice, table.path)
        return self.rows[table.path]

    # Images

    def _images(self) -> tuple[dict[str, Path], Table | None]:
        """Return id -> image, and the table that lists them if there is one."""
        options = self.source.options
        matched: dict[str, Path] = {}
        if options.images:
            matches = find_files(image_pattern(options.images), self.source.root)
            self._refuse_ambiguous(matches, "image")
            matched = matches.files
            if not matched:
                self._add(
                    "nothing matches",
                    f"data.images = '{options.images}'",
                    f"must match the images, found none below {self.source.root}",
                    "correct the pattern, or the folder in which the study's file lies",
                )
        manifest = self._table(options.table) if options.table else None
        images = matched if manifest is None else self._listed_images(manifest, matched)
        self.files.update(images.values())
        return images, manifest

    def _listed_images(self, table: Table, matched: dict[str, Path]) -> dict[str, Path]:
        """Return the images that a table lists, by id."""
        if "image" not in table.columns:
            table.column("id")
            if not matched:
                return {}
            rows = rows_by_id(table, image_names(matched, self.source.root))
            self._refuse_twice(rows.twice, table.path)
            self._refuse_unknown(rows.unknown, table.path)
            return {frame_id: matched[frame_id] for frame_id in rows.rows}
        paths = [self._beside(cell, table.path) for cell in table.columns["image"]]
        ids = table.columns.get("id") or _ids_of(paths)
        images: dict[str, Path] = {}
        for frame_id, path, line in zip(ids, paths, table.lines, strict=True):
            place = f"{shown_path(table.path, self.source.root)}, line {line}"
            if not frame_id or len(frame_id) > LONGEST_ID:
                self._add(
                    "bad id",
                    place,
                    f"an id must have 1 to {LONGEST_ID} characters, found {len(frame_id)}",
                    "give the row another",
                )
            elif frame_id in images:
                self._add(
                    "id twice",
                    place,
                    f"'{frame_id}' stands in an earlier line too",
                    "keep one of them",
                )
            elif not path.exists():
                self._add(
                    "missing image",
                    place,
                    f"there is no file {path}",
                    "add the file, or take the row out",
                )
            else:
                images[unicodedata.normalize("NFC", frame_id)] = path
        return images

    def _beside(self, cell: str, table: Path) -> Path:
        """Find the file that a cell names, relative to the study's folder or to the table's."""
        path = self._path(cell)
        beside = Path(os.path.normpath(table.parent / cell))
        return beside if not path.exists() and beside.exists() else path

    def _refuse_ambiguous(self, matches: Matches, what: str) -> None:
        root = self.source.root
        for frame_id, paths in matches.twice.items():
            self._add(
                "id twice",
                frame_id,
                "found " + " and ".join(shown_path(path, root) for path in paths),
                f"every {what} needs an id of its own; move one away or narrow the pattern",
            )
        for path in matches.unnameable:
            self._add(
                "bad file name",
                ascii(shown_path(path, root)),
                f"a name must be UTF-8 text of at most {LONGEST_ID} characters",
                "rename it",
            )

    def _refuse_twice(self, twice: Sequence[tuple[str, int]], path: Path) -> None:
        for frame_id, line in twice:
            self._add(
                "id twice",
                f"{shown_path(path, self.source.root)}, line {line}",
                f"'{frame_id}' stands in an earlier line too",
                "keep one of them",
            )

    def _refuse_unknown(self, unknown: Sequence[tuple[str, int]], path: Path) -> None:
        if unknown:
            named = first_names(f"'{name}' (line {line})" for name, line in unknown)
            self._add(
                "unknown image",
                shown_path(path, self.source.root),
                f"must name ids or paths of images, found {named}",
                "correct the names, or data.images",
                count=len(unknown),
            )

    # Labels

    def _labels(
        self, task: str, images: Mapping[str, Path], names: dict[str, str]
    ) -> dict[str, Label]:
        """Return id -> label of a task."""
        text = self.source.labels[task]
        reference = column_reference(text)
        where = f"tasks.{task}.label = '{text}'"
        if reference is None:
            found = self._label_files(text, where, images)
        else:
            table = self._table(reference.file)
            columns = table.value_columns(reference.columns)
            rows = self._rows(table, names)
            if rows.unknown and images:
                self._add(
                    "rows with no image",
                    where,
                    f"found none of {first_names(f'{n!r} (line {at})' for n, at in rows.unknown)}",
                    "they are left out; correct the names if this is not meant",
                    count=len(rows.unknown),
                    is_warning=bool(rows.rows),
                )
            chosen = [table.columns[name] for name in columns]
            cells = {i: tuple(column[at] for column in chosen) for i, at in rows.rows.items()}
            found = {i: row for i, row in cells.items() if any(row)}
            if self.source.tasks[task].storage.dense:
                found = self._files_in_cells(found, where, table)
        if images and not found:
            self._add(
                "task without labels",
                where,
                f"must match labels of the images, found none for {len(images)} images such "
                f"as '{next(iter(images))}'",
                "correct the label's pattern or column",
            )
        lacking = [i for i in images if i not in found]
        if found and lacking:
            self._add(
                "images without this label",
                where,
                first_names(lacking),
                "they do not count for this task",
                count=len(lacking),
                is_warning=True,
            )
        return found

    def _label_files(self, text: str, where: str, images: Mapping[str, Path]) -> dict[str, Label]:
        matches = find_files(label_pattern(text), self.source.root)
        self._refuse_ambiguous(
            Matches(
                matches.files,
                {i: p for i, p in matches.twice.items() if i in images},
                matches.unnameable,
            ),
            "label",
        )
        found = {i: path for i, path in matches.files.items() if i in images}
        # An image may match the pattern of labels, as `{id}.png` beside `{id}_mask.png`.
        paths = set(images.values())
        alone = [i for i, path in matches.files.items() if i not in images and path not in paths]
        if alone and images:
            self._add(
                "labels with no image",
                where,
                f"no image has the id {first_names(alone)}",
                "add the images, move these labels away, or correct the pattern",
                count=len(alone),
            )
        self.files.update(found.values())
        return dict(found)

    def _files_in_cells(
        self, cells: Mapping[str, Label], where: str, table: Table
    ) -> dict[str, Label]:
        found: dict[str, Label] = {}
        for frame_id, row in cells.items():
            if not isinstance(row, tuple) or len(row) != 1:
                raise UsageError(f"{where}: labels that are files need one column of their paths")
            path = self._beside(row[0], table.path)
            found[frame_id] = path
            self.files.add(path)
            if not path.exists():
                self._add(
                    "missing label",
                    shown_path(path, self.source.root),
                    f"{where} names it for '{frame_id}'",
                    "add the file, or empty the cell",
                )
        return found

    # Parts

    def _parts(
        self,
        images: Mapping[str, Path],
        manifest: Table | None,
        names: dict[str, str],
        labels: Mapping[str, Mapping[str, Label]],
    ) -> dict[str, PartName]:
        """Return id -> part."""
        options = self.source.options
        listed = self._listed_parts(images, names)
        if manifest is not None and SPLIT_COLUMN in manifest.columns and not listed:
            listed = self._split_column(images, manifest, names)
        groups = self._groups(images, names)
        given: dict[str, PartName] = {
            frame_id: part for part in PARTS for frame_id in listed.get(part, ())
        }
        rest = [i for i in images if i not in given]
        parts = dict(given)
        features = _features(images, labels)

        def draw(frames: Iterable[str], shares: dict[PartName, float]) -> None:
            units = make_units(frames, groups=groups, features=features)
            parts.update(draw_parts(units, shares, seed=options.split_seed))

        drawn = self.source.validation == 0 and "validation" not in listed
        validation = options.fractions.validation if drawn else 0.0
        test = options.fractions.test if "test" not in listed else 0.0
        if "train" not in listed:
            draw(rest, {"train": 1 - validation - test, "validation": validation, "test": test})
        else:
            if "test" not in listed:
                parts |= dict.fromkeys(rest, "test")
                rest = []
            if rest:
                self._add(
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
        self._refuse_empty_parts(parts, images)
        self._refuse_unlabelled_parts(parts, labels)
        self._warn_of_torn_groups(parts, groups)
        return parts

    def _listed_parts(
        self, images: Mapping[str, Path], names: dict[str, str]
    ) -> dict[PartName, tuple[str, ...]]:
        options = self.source.options
        lists: dict[PartName, str | int] = {
            "train": options.train,
            "validation": self.source.validation,
            "test": options.test,
        }
        listed: dict[PartName, tuple[str, ...]] = {}
        seen: dict[str, PartName] = {}
        for part, name in lists.items():
            if not isinstance(name, str) or not name:
                continue
            path = self._path(name)
            self.files.add(path)
            read = read_list(path, names)
            self._refuse_twice(read.twice, path)
            self._refuse_unknown(read.unknown, path)
            for frame_id in read.frames:
                if frame_id in seen:
                    self._add(
                        "id in two parts",
                        frame_id,
                        f"found in {seen[frame_id]} and {part}",
                        "take it out of one of the lists",
                    )
                seen.setdefault(frame_id, part)
            listed[part] = tuple(i for i in read.frames if i in images)
        return listed

    def _split_column(
        self, images: Mapping[str, Path], table: Table, names: dict[str, str]
    ) -> dict[PartName, tuple[str, ...]]:
        listed: dict[PartName, list[str]] = {}
        rows = self._rows(table, names)
        words = table.columns[SPLIT_COLUMN]
        for frame_id, row in rows.rows.items():
            word = words[row]
            if word.lower() not in PART_OF_WORD:
                self._add(
                    "unknown part",
                    f"{shown_path(table.path, self.source.root)}, line {table.lines[row]}",
                    f"split must be train, validation or test, found '{word}'",
                    "correct the cell",
                )
            elif frame_id in images:
                listed.setdefault(PART_OF_WORD[word.lower()], []).append(frame_id)
        return {part: tuple(ids) for part, ids in listed.items()}

    def _groups(self, images: Mapping[str, Path], names: dict[str, str]) -> dict[str, str]:
        """Return id -> name of its group."""
        text = self.source.options.group
        if not text:
            return {}
        reference = column_reference(text)
        if reference is not None:
            table = self._table(reference.file)
            cells = table.column(*reference.columns[:1])
            rows = self._rows(table, names).rows
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
            self._add(
                "id without a group",
                f"data.group = '{text}'",
                first_names(odd),
                "each is a group by itself",
                count=len(odd),
                is_warning=True,
            )
        return {i: match["group"] for i, match in found.items() if match is not None}

    def _refuse_empty_parts(
        self, parts: Mapping[str, PartName], images: Mapping[str, Path]
    ) -> None:
        counts = Counter(parts.values())
        needed = self._needed_parts()
        empty = [part for part in needed if not counts[part]]
        if empty and images:
            shown = ", ".join(f"{part} {counts[part]}" for part in needed)
            self._add(
                "empty part",
                " and ".join(empty),
                f"every part must have frames, found {shown} of {len(images)} images",
                "give more images, or correct the lists or data.fractions",
            )

    def _needed_parts(self) -> tuple[PartName, ...]:
        """Parts that must have frames; a number of validation frames is taken later from train."""
        taken_later = isinstance(self.source.validation, int) and self.source.validation > 0
        return ("train", "test") if taken_later else PARTS

    def _refuse_unlabelled_parts(
        self, parts: Mapping[str, PartName], labels: Mapping[str, Mapping[str, Label]]
    ) -> None:
        """Refuse a task without labels in a part, of which nothing could be learnt or measured."""
        filled = set(parts.values())
        for task, by_id in labels.items():
            counts = Counter(part for frame_id, part in parts.items() if frame_id in by_id)
            needed = [part for part in self._needed_parts() if part in filled]
            if by_id and any(not counts[part] for part in needed):
                shown = ", ".join(f"{counts[part]} in {part}" for part in needed)
                self._add(
                    "part without labels",
                    f"tasks.{task}",
                    f"every part must have labels of every task, found {shown}",
                    "label more frames, or correct the lists, data.fractions or data.split_seed",
                )

    def _warn_of_torn_groups(
        self, parts: Mapping[str, PartName], groups: Mapping[str, str]
    ) -> None:
        of_group: dict[str, set[str]] = {}
        for frame_id, part in parts.items():
            if frame_id in groups:
                of_group.setdefault(groups[frame_id], set()).add(part)
        torn = [group for group, its_parts in sorted(of_group.items()) if len(its_parts) > 1]
        if torn:
            self._add(
                "group in several parts",
                "data.group",
                first_names(torn),
                "results on test may be too good; correct the lists",
                count=len(torn),
                is_warning=True,
            )

    def _digest(self) -> str:
        """Digest of names, sizes and times of all files that were found."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            try:
                status = path.stat()
                facts = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                facts = "missing"
            name = shown_path(path, self.source.root)
            digest.update(f"{name!a} {facts}\n".encode())
        return digest.hexdigest()[:16]


def _ids_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """Ids of images that a table lists: paths below the folder they share, without suffix."""
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return tuple(os.path.splitext(os.path.relpath(path, shared))[0] for path in paths)


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
