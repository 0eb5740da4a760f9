"""Find where the label of each image lies: a file, or cells of a table."""

from collections.abc import Mapping
from pathlib import Path

from gatesearch.datasets.faults import first_names
from gatesearch.datasets.folder.findings import Findings
from gatesearch.datasets.folder.images import refuse_ambiguous
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.patterns import Matches, find_files, label_pattern
from gatesearch.datasets.folder.tables import Table, column_reference
from gatesearch.errors import UsageError

Label = Path | tuple[str, ...]  # a file, or cells of a table
# Kind of the warning of frames without labels of a task, which are counted wherever data are told.
WITHOUT_LABEL = "images without this label"


def find_labels(
    source: FolderSource,
    task: str,
    images: Mapping[str, Path],
    names: dict[str, str],
    findings: Findings,
) -> dict[str, Label]:
    """Return id -> label of a task, for the images that have one.

    Args:
        source: The folder.
        task: Name of the task.
        images: Id -> image.
        names: Ways to name an image -> its id.
        findings: Gets faults and files.

    Raises:
        UsageError: The task's `label` cannot be read, or names files where its kind has cells.
        DataError: A table cannot be read, or lacks a column.
    """
    text = source.labels[task]
    reference = column_reference(text)
    where = f"tasks.{task}.label = '{text}'"
    if reference is None:
        if not source.tasks[task].storage.dense:
            raise UsageError(
                f"{where}: labels of this kind are columns of a table, as 'table.csv:age', not a "
                "file per image; name columns, or another kind"
            )
        found = _label_files(source, text, where, images, findings)
    else:
        table = findings.table(reference.file)
        columns = table.value_columns(reference.columns)
        rows = findings.rows(table, names)
        if rows.unknown and images:
            findings.add(
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
        if source.tasks[task].storage.dense:
            found = _files_in_cells(found, where, table, findings)
    if images and not found:
        findings.add(
            "task without labels",
            where,
            f"must match labels of the images, found none for {len(images)} images such "
            f"as '{next(iter(images))}'",
            "correct the label's pattern or column",
        )
    lacking = [i for i in images if i not in found]
    if found and lacking:
        findings.add(
            WITHOUT_LABEL,
            where,
            first_names(lacking),
            "they do not count for this task",
            count=len(lacking),
            is_warning=True,
        )
    return found


def _label_files(
    source: FolderSource, text: str, where: str, images: Mapping[str, Path], findings: Findings
) -> dict[str, Label]:
    matches = find_files(label_pattern(text), source.root)
    refuse_ambiguous(
        Matches(
            matches.files,
            {i: p for i, p in matches.twice.items() if i in images},
            matches.unnameable,
        ),
        "label",
        findings,
    )
    found = {i: path for i, path in matches.files.items() if i in images}
    # An image may match the pattern of labels, as `{id}.png` beside `{id}_mask.png`.
    paths = set(images.values())
    alone = [i for i, path in matches.files.items() if i not in images and path not in paths]
    # A table that lists the frames may leave some out that have labels.
    if alone and images and not source.options.table:
        findings.add(
            "labels with no image",
            where,
            f"no image has the id {first_names(alone)}",
            "add the images, move these labels away, or correct the pattern",
            count=len(alone),
        )
    findings.files.update(found.values())
    return dict(found)


def _files_in_cells(
    cells: Mapping[str, Label], where: str, table: Table, findings: Findings
) -> dict[str, Label]:
    found: dict[str, Label] = {}
    for frame_id, row in cells.items():
        if not isinstance(row, tuple) or len(row) != 1:
            raise UsageError(f"{where}: labels that are files need one column of their paths")
        path = findings.path_beside(row[0], table.path)
        found[frame_id] = path
        findings.files.add(path)
        if not path.exists():
            findings.add(
                "missing label",
                findings.shown(path),
                f"{where} names it for '{frame_id}'",
                "add the file, or empty the cell",
            )
    return found
