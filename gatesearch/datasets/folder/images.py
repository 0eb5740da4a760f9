"""Find the images of a folder: files that match a pattern, or that a table lists."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from gatesearch.datasets.folder.findings import Findings
from gatesearch.datasets.folder.options import FolderSource
from gatesearch.datasets.folder.patterns import LONGEST_ID, Matches, find_files, image_pattern
from gatesearch.datasets.folder.tables import Table, image_names, rows_by_id


def find_images(source: FolderSource, findings: Findings) -> dict[str, Path]:
    """Return id -> image.

    Raises:
        UsageError: The pattern cannot be read.
        DataError: The table cannot be read.
    """
    options = source.options
    matched: dict[str, Path] = {}
    if options.images:
        matches = find_files(image_pattern(options.images), source.root)
        refuse_ambiguous(matches, "image", findings)
        matched = matches.files
        if not matched:
            findings.add(
                "nothing matches",
                f"data.images = '{options.images}'",
                f"must match the images, found none below {source.root}",
                "correct the pattern, or the folder in which the study's file lies",
            )
    images = matched
    if options.table:
        images = _listed_images(findings.table(options.table), matched, findings)
    findings.files.update(images.values())
    return images


def refuse_ambiguous(matches: Matches, what: str, findings: Findings) -> None:
    """Add a fault for each id of several files, and for names that are no text.

    Args:
        matches: Files that match a pattern.
        what: What they are, as `image`.
        findings: Gets the faults.
    """
    for frame_id, paths in matches.twice.items():
        findings.add(
            "id twice",
            frame_id,
            "found " + " and ".join(findings.shown(path) for path in paths),
            f"every {what} needs an id of its own; move one away or narrow the pattern",
        )
    for path in matches.unnameable:
        findings.add(
            "bad file name",
            ascii(findings.shown(path)),
            f"a name must be UTF-8 text of at most {LONGEST_ID} characters",
            "rename it",
        )


def _listed_images(table: Table, matched: dict[str, Path], findings: Findings) -> dict[str, Path]:
    """Return the images that a table lists, by id."""
    if "image" not in table.columns:
        table.column("id")
        if not matched:
            return {}
        rows = rows_by_id(table, image_names(matched, findings.root))
        findings.refuse_twice(rows.twice, table.path)
        findings.refuse_unknown(rows.unknown, table.path)
        return {frame_id: matched[frame_id] for frame_id in rows.rows}
    paths = [findings.path_beside(cell, table.path) for cell in table.columns["image"]]
    given = table.columns.get("id") or _ids_of(paths)
    ids = [unicodedata.normalize("NFC", frame_id) for frame_id in given]
    images: dict[str, Path] = {}
    for frame_id, path, line in zip(ids, paths, table.lines, strict=True):
        place = f"{findings.shown(table.path)}, line {line}"
        if not frame_id or len(frame_id) > LONGEST_ID:
            findings.add(
                "bad id",
                place,
                f"an id must have 1 to {LONGEST_ID} characters, found {len(frame_id)}",
                "give the row another",
            )
        elif frame_id in images:
            findings.add(
                "id twice",
                place,
                f"'{frame_id}' stands in an earlier line too",
                "keep one of them",
            )
        elif not path.exists():
            findings.add(
                "missing image",
                place,
                f"there is no file {path}",
                "add the file, or take the row out",
            )
        else:
            images[frame_id] = path
    return images


def _ids_of(paths: Sequence[Path]) -> tuple[str, ...]:
    """Ids of images that a table lists: paths below the folder they share, without suffix."""
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return tuple(os.path.splitext(os.path.relpath(path, shared))[0] for path in paths)
