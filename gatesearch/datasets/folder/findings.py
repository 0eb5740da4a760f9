"""Gathers what is found while a folder is listed: faults, files that were used, tables."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatesearch.datasets.faults import Fault, first_names, shown_path
from gatesearch.datasets.folder.tables import RowsById, Table, read_table, rows_by_id


@dataclass
class Findings:
    """What is found while a folder is listed.

    Attributes:
        root: Folder of the study's file.
        faults: Faults and warnings.
        files: Files that the frames depend on.
        tables: Tables that were read.
        found_rows: Table -> the row of each image.
    """

    root: Path
    faults: list[Fault] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    tables: dict[Path, Table] = field(default_factory=dict)
    found_rows: dict[Path, RowsById] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        place: str,
        found: str,
        cure: str,
        *,
        count: int = 1,
        is_warning: bool = False,
    ) -> None:
        """Add a fault or a warning; see `Fault`."""
        self.faults.append(Fault(kind, place, found, cure, count, is_warning))

    def path(self, name: str) -> Path:
        """Find a file that the study names."""
        return Path(os.path.normpath(self.root / name))

    def path_beside(self, cell: str, table: Path) -> Path:
        """Find a file that a cell names, relative to the study's folder or to the table's."""
        path = self.path(cell)
        beside = Path(os.path.normpath(table.parent / cell))
        return beside if not path.exists() and beside.exists() else path

    def table(self, name: str) -> Table:
        """Read a table once.

        Raises:
            DataError: It cannot be read.
        """
        path = self.path(name)
        if path not in self.tables:
            self.files.add(path)
            self.tables[path] = read_table(path)
        return self.tables[path]

    def rows(self, table: Table, names: dict[str, str]) -> RowsById:
        """Find the row of each image; images with several rows are told once.

        Args:
            table: The table.
            names: Ways to name an image -> its id.
        """
        if table.path not in self.found_rows:
            self.found_rows[table.path] = rows_by_id(table, names)
            self.refuse_twice(self.found_rows[table.path].twice, table.path)
        return self.found_rows[table.path]

    def shown(self, path: Path) -> str:
        """Spell a path as the user knows it."""
        return shown_path(path, self.root)

    def refuse_twice(self, twice: Sequence[tuple[str, int]], path: Path) -> None:
        """Add a fault for each id that comes again, with its line."""
        for frame_id, line in twice:
            self.add(
                "id twice",
                f"{self.shown(path)}, line {line}",
                f"'{frame_id}' stands in an earlier line too",
                "keep one of them",
            )

    def refuse_unknown(self, unknown: Sequence[tuple[str, int]], path: Path) -> None:
        """Add a fault for the lines of a file that name no image."""
        if unknown:
            named = first_names(f"'{name}' (line {line})" for name, line in unknown)
            self.add(
                "unknown image",
                self.shown(path),
                f"must name ids or paths of images, found {named}",
                "correct the names, or data.images",
                count=len(unknown),
            )

    def digest(self) -> str:
        """Digest names, sizes and times of all files."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            try:
                status = path.stat()
                facts = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                facts = "missing"
            digest.update(f"{self.shown(path)!a} {facts}\n".encode())
        return digest.hexdigest()[:16]
