"""Opens the release of a data set: folder or archive, official lists, what is missing."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gatesearch.checksums import checksum
from gatesearch.datasets.archives import SUFFIXES, is_archive, unpack
from gatesearch.datasets.dataset import PackRequest
from gatesearch.datasets.image_files import read_user_file
from gatesearch.datasets.label_checks import GET_AGAIN
from gatesearch.datasets.pack_manifest import SplitName
from gatesearch.datasets.scratch import scratch_folder
from gatesearch.errors import DataError, UsageError
from gatesearch.events import Emit
from gatesearch.files import MIB

_LONGEST_ID = 100
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{_LONGEST_ID}}}")
_SHOWN = 40  # characters of a name in an error


@contextmanager
def open_release(
    source: Path | None, *, dataset: str, folder: Path, request: PackRequest, emit: Emit
) -> Iterator[Path]:
    """Give the folder of a release; that of an archive is removed when the block ends.

    Errors in the block name files of an archive by their place in it.

    Args:
        source: A folder or an archive.
        dataset: Name of the data set.
        folder: The data folder, beside whose packs an archive is unpacked.
        request: What is asked of the pack.
        emit: Receives events.

    Raises:
        UsageError: No source, or no positive size.
        DataError: The source is neither a folder nor an archive, or cannot be unpacked.
    """
    if source is None:
        raise UsageError(
            f"{dataset} needs its frames: name a folder or an archive with --source PATH"
        )
    size = request.size
    if size is not None and min(size) < 1:
        raise UsageError(f"size must be positive, found {size[0]} x {size[1]}")
    if source.is_file() and is_archive(source):
        with unpacked(source, folder=folder, dataset=dataset, emit=emit) as root:
            yield root
    elif source.is_dir():
        yield source
    else:
        what = "found another kind of file" if source.exists() else "found nothing there"
        raise DataError(f"{source} must be a folder or {', '.join(SUFFIXES)}, {what}")


@contextmanager
def unpacked(archive: Path, *, folder: Path, dataset: str, emit: Emit) -> Iterator[Path]:
    """Unpack an archive into a folder that is removed when the block ends.

    Errors in the block name files by their place in the archive.
    """
    try:
        with scratch_folder(folder / dataset, purpose="unpacked") as root:
            unpack(archive, root, emit=emit)
            try:
                yield root
            except DataError as error:
                raise DataError(str(error).replace(str(root), str(archive))) from error
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}; name another --data") from error


def folders_of(root: Path) -> list[Path]:
    """List the folders in which a layout may begin: `root`, and those in it."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())]


def unknown_layout(root: Path, *, dataset: str, title: str, expected: str) -> DataError:
    """Say that a folder holds no layout of a data set.

    Args:
        root: The folder.
        dataset: Name of the data set.
        title: Its name in full.
        expected: What would be there.
    """
    names = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    return DataError(
        f"{root} holds no {title} layout: expected {expected}; found {printable(names, 400)}; "
        f"see: gatesearch data info {dataset}"
    )


def read_lines(path: Path, *, limit: int) -> list[str]:
    """Read the lines of a text in UTF-8, whatever ends them, without a mark of byte order.

    Raises:
        DataError: It cannot be read, is too large, or is no such text.
    """
    try:
        return read_user_file(path, limit=limit).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read ({error}); {GET_AGAIN}") from error


def read_ids(path: Path) -> tuple[str, ...]:
    """Read an official list of frames, ids between spaces or line ends.

    Raises:
        DataError: It cannot be read, lists nothing, a frame twice, or what can be no file's name.
    """
    ids = tuple(" ".join(read_lines(path, limit=MIB)).split())
    if not ids:
        raise DataError(f"{path} lists no frames; {GET_AGAIN}")
    odd = [frame for frame in ids if not _ID.fullmatch(frame)]
    if odd:
        raise DataError(
            f"{path} must list ids of up to {_LONGEST_ID} letters and digits, "
            f"found '{printable(odd[0])}'"
        )
    if len(set(ids)) < len(ids):
        twice = next(frame for frame, count in Counter(ids).items() if count > 1)
        raise DataError(f"{path} must list each frame once, found {twice} twice; {GET_AGAIN}")
    return ids


def check_disjoint(train: Iterable[str], test: Iterable[str], *, where: str) -> None:
    """Refuse lists that share a frame.

    Raises:
        DataError: Naming the first one.
    """
    both = set(train) & set(test)
    if both:
        raise DataError(f"{where}, found {min(both)} in both; {GET_AGAIN}")


def check_all_exist(paths: Iterable[Path]) -> None:
    """Refuse a release that lacks a file.

    Raises:
        DataError: Naming the first file that is missing or no regular file, and how many more.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        fault = "found no regular file at" if missing[0].exists() else "missing"
        raise DataError(
            f"every listed frame needs all its files, {fault} {missing[0]}{more}; {GET_AGAIN}"
        )


def identity_of(*files: Path) -> str:
    """Digest names, sizes and times of files: a changed file has another digest."""
    stats = [(str(path), path.stat()) for path in files]
    return checksum([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def notes_on_counts(found: Mapping[SplitName, int], official: Mapping[SplitName, int]) -> list[str]:
    """Say which parts have another number of frames than the official ones."""
    return [
        f"{split}: {found[split]} of the {count} official frames"
        for split, count in official.items()
        if found[split] != count
    ]


def printable(text: str, longest: int = _SHOWN) -> str:
    """Shorten text for an error, to one line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])
