"""Read tables of a user's own: CSV with any usual delimiter, and Parquet.

All cells are text, an empty one is no value. With the delimiter `;`, where numbers have a decimal
comma in many countries, `3,5` is read as 3.5.
"""

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gatesearch.datasets.image_files import read_user_file
from gatesearch.errors import DataError, UsageError, nearest, one_line
from gatesearch.files import LARGEST_TABLE

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
ALL = "*"  # all columns that are no ids
# Columns that say which image a row is of, and in which part it is.
ID_COLUMNS = ("id", "image")
SPLIT_COLUMN = "split"
_DELIMITERS = (",", ";", "\t", "|")
_REFERENCE = re.compile(r"(?is)(?P<file>.+?\.(?:csv|tsv|txt|parquet)):(?P<columns>.+)")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?[0-9]+,[0-9]+([eE][-+]?[0-9]+)?\s*")
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SHOWN = 60  # characters of a cell
_LOOKED_AT = 20  # rows in which columns are compared


@dataclass(frozen=True)
class ColumnReference:
    """Columns of a table, as `FILE.csv:a,b` names them.

    Attributes:
        file: The table, relative to the study's folder.
        columns: Names of columns; `*` alone is all that are no ids.
    """

    file: str
    columns: tuple[str, ...]


def column_reference(text: str) -> ColumnReference | None:
    """Read `FILE.csv:a,b`; None if the text is no reference to columns of a table.

    >>> column_reference("table.csv:age")
    ColumnReference(file='table.csv', columns=('age',))
    >>> column_reference("masks/{id}.png")
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    names = next(csv.reader([match["columns"]]))
    return ColumnReference(match["file"], tuple(name.strip() for name in names))


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        path: Its file.
        columns: Name of a column -> its cells, in the order of the file.
        lines: Line of each row, for errors.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str) -> tuple[str, ...]:
        """Return the cells of a column.

        Raises:
            DataError: There is no such column.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column '{name}'{nearest(name, self.columns)} "
                f"(its columns: {_listed(self.columns)}); name one of them"
            )
        return self.columns[name]

    def value_columns(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the columns that a reference names; `*` is all but ids and `split`.

        Raises:
            DataError: A named column is absent, or `*` leaves none.
        """
        if names == (ALL,):
            used = {self.id_column, *ID_COLUMNS, SPLIT_COLUMN}
            names = tuple(name for name in self.columns if name not in used)
            if not names:
                raise DataError(f"{self.path} has no column beside the ids; name another table")
        for name in names:
            self.column(name)
        return names

    @cached_property
    def id_column(self) -> str:
        """Column that says which image a row is of: `id`, else `image`, else the first one."""
        return next((name for name in ID_COLUMNS if name in self.columns), next(iter(self.columns)))


def read_table(path: Path) -> Table:
    """Read a table, CSV or Parquet.

    Raises:
        DataError: It is missing, no UTF-8 text, has rows of unequal length (the error names the
            line), no rows, or a column twice.
        UsageError: Parquet without pyarrow.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    data = read_user_file(path, limit=LARGEST_TABLE)
    for start, encoding in _OTHER_ENCODINGS.items():
        if data.startswith(start):
            raise DataError(f"{path} must be UTF-8 text, found {encoding}; save it as CSV UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} must be UTF-8 text, found the byte {data[error.start]:#04x} in line {line}; "
            "save it as CSV UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path} must be text, found a zero byte; save it as CSV UTF-8")
    return _read_csv(text, path)


def _read_csv(text: str, path: Path) -> Table:
    delimiter = _sniff(text, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        before = 0
        for row in reader:
            line, before = before + 1, reader.line_num
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(line)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}, is no row of a table: {one_line(error)}; mend it"
        ) from error
    if len(rows) < 2:
        raise DataError(f"{path} must have a line of column names and rows below it, found none")
    head, *body = rows
    for row, line in zip(body, lines[1:], strict=True):
        if len(row) != len(head):
            raise DataError(
                f"{path}, line {line}, must have {len(head)} cells as its first line has, found "
                f"{len(row)}; mend that line (a cell that holds the delimiter {delimiter!r} needs "
                "quotes)"
            )
    table = _table(path, head, list(zip(*body, strict=True)), tuple(lines[1:]))
    return _with_decimal_points(table) if delimiter == ";" else table


def _sniff(text: str, path: Path) -> str:
    """Tell the delimiter: the one that cuts the first line into the most cells."""
    head = next((line for line in text.splitlines() if line.strip()), "")
    counts = {}
    for delimiter in _DELIMITERS:
        try:
            counts[delimiter] = len(next(csv.reader([head], delimiter=delimiter), []))
        except csv.Error:
            counts[delimiter] = 0
    return max(_DELIMITERS, key=lambda delimiter: counts[delimiter])


def _with_decimal_points(table: Table) -> Table:
    """Replace decimal commas in columns whose numbers have them.

    Raises:
        DataError: A column has numbers with a comma and others with a point, or both in one.
    """
    columns = dict(table.columns)
    for name, cells in table.columns.items():
        commas = [bool(_DECIMAL_COMMA.fullmatch(cell)) for cell in cells]
        if not any(commas):
            continue
        for cell, line, comma in zip(cells, table.lines, commas, strict=True):
            if "." in cell and not comma:
                raise DataError(
                    f"{table.path}, line {line}: column '{name}' must have one kind of decimal "
                    f"sign, found '{cell[:_SHOWN]}' beside numbers as 3,5; write them all with "
                    "points"
                )
        columns[name] = tuple(
            cell.replace(",", ".") if comma else cell
            for cell, comma in zip(cells, commas, strict=True)
        )
    return replace(table, columns=columns)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{path} is a Parquet file, which needs pyarrow; pip install 'gatesearch[parquet]', or "
            "save the table as CSV"
        ) from error
    data = read_user_file(path, limit=LARGEST_TABLE)
    try:
        read = pyarrow.parquet.read_table(io.BytesIO(data))
        head = list(read.column_names)
        body = [tuple(map(_cell, column.to_pylist())) for column in read.columns]
    # What pyarrow raises on damaged input is an open set.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {one_line(error)}; write it again"
        ) from error
    if not head or not body[0]:
        raise DataError(f"{path} must have columns and rows, found none")
    return _table(path, head, body, tuple(range(1, len(body[0]) + 1)))


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise ValueError(f"cells must be text or numbers, found {type(value).__name__}")


def _table(
    path: Path, head: list[str], body: list[tuple[str, ...]], lines: tuple[int, ...]
) -> Table:
    names = [name.strip() for name in head]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} must have each column once, found '{twice}' twice; rename one")
    return Table(path, dict(zip(names, body, strict=True)), lines)


@dataclass(frozen=True)
class RowsById:
    """Rows of a table by the id of their image.

    Attributes:
        rows: Id -> index of its row.
        twice: Ids with several rows, with their lines.
        unknown: Cells that name no image, with their lines.
    """

    rows: dict[str, int]
    twice: tuple[tuple[str, int], ...]
    unknown: tuple[tuple[str, int], ...]


def rows_by_id(table: Table, names: dict[str, str]) -> RowsById:
    """Find the row of each image.

    Args:
        table: The table.
        names: Ways to name an image -> its id; see `image_names`.

    Raises:
        DataError: An image stands where the names of the columns belong, or another column names
            other images by their files.
    """
    head = table.id_column
    if head not in ID_COLUMNS and find_image(head, names, table.path.parent) is not None:
        raise DataError(
            f"{table.path} must begin with a line of column names, found a row of the image "
            f"'{head}' there; put a line above it, as image,age"
        )
    _refuse_rivals(table, names)
    rows: dict[str, int] = {}
    twice, unknown = [], []
    cells = table.column(table.id_column)
    for index, (cell, line) in enumerate(zip(cells, table.lines, strict=True)):
        frame_id = find_image(cell, names, table.path.parent)
        if frame_id is None:
            unknown.append((cell, line))
        elif frame_id in rows:
            twice.append((frame_id, line))
        else:
            rows[frame_id] = index
    return RowsById(rows, tuple(twice), tuple(unknown))


def _refuse_rivals(table: Table, names: dict[str, str]) -> None:
    """Refuse a table in which numbers of rows happen to be ids, beside a column of image files.

    Raises:
        DataError: Two columns name images, and not the same ones.
    """
    folder = table.path.parent
    head = table.id_column
    chosen = [find_image(cell, names, folder) for cell in table.columns[head][:_LOOKED_AT]]
    for name, cells in table.columns.items():
        first = cells[: len(chosen)]
        named = [find_image(cell, names, folder) for cell in first]
        by_file = all(
            frame_id is not None and frame_id != cell
            for frame_id, cell in zip(named, first, strict=True)
        )
        if by_file and named != chosen:
            raise DataError(
                f"{table.path} must name the image of a row in one column, found '{head}' and "
                f"'{name}', which name different ones; take one out, or rename the right one to "
                "'id' and the other to something else"
            )


def image_names(images: dict[str, Path], root: Path) -> dict[str, str]:
    """List the ways in which lists and tables may name an image, name -> its id.

    They are its id, its id with the suffix of its file, its path, relative to the study's folder or
    absolute, and the name of its file if no other has that name.
    """
    files = Counter(path.name for path in images.values())
    names = {
        unicodedata.normalize("NFC", path.name): frame_id
        for frame_id, path in images.items()
        if files[path.name] == 1
    }
    for frame_id, path in images.items():
        for way in (os.path.normpath(path), os.path.relpath(path, root)):
            names[unicodedata.normalize("NFC", way)] = frame_id
        names[frame_id + path.suffix] = frame_id
    return names | {frame_id: frame_id for frame_id in images}


def find_image(name: str, names: dict[str, str], folder: Path) -> str | None:
    """Find the id of the image that a list or table names; None if it names none.

    Args:
        name: The name.
        names: Ways to name an image -> its id.
        folder: Folder of the list or table, which a path may be relative to.
    """
    if not name:
        return None
    name = unicodedata.normalize("NFC", name)
    ways = (name, os.path.normpath(name), os.path.normpath(folder / name))
    return next((names[way] for way in ways if way in names), None)


def _listed(columns: dict[str, tuple[str, ...]]) -> str:
    names = list(columns)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
