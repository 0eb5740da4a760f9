"""Patterns of file names: which files are the images, and which are the labels of a task.

| pattern | meaning |
|---|---|
| `photos/**/*.jpg` | images; an id is the path below `photos`, without the suffix |
| `photos/*.{jpg,png}` | images with either suffix |
| `photos/{id}_rgb.png` | images; an id is what `{id}` stands for, which may hold slashes |
| `masks/{id}.png` | labels of the image of that id |

The case of a pattern's suffix makes no difference. Hidden files are left out, as in a shell.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gatesearch.errors import UsageError

ID = "{id}"
LONGEST_ID = 1000
_MAGIC = re.compile(r"[*?\[{]")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]+$|\.\{[A-Za-z0-9,]+\}$")


@dataclass
class Matches:
    """The files that a pattern matches.

    Attributes:
        files: Id -> file, in the order of the ids.
        twice: Id -> all files that have it, where there are several.
        unnameable: Files whose name is not UTF-8 text, or longer than an id may be.
    """

    files: dict[str, Path] = field(default_factory=dict)
    twice: dict[str, list[Path]] = field(default_factory=dict)
    unnameable: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Pattern:
    """A pattern, split where its folders begin to vary.

    Attributes:
        text: As the user wrote it.
        fixed: Folder in which files are looked for; the part of the pattern without wildcards.
        regex: Matches paths below that folder, with slashes; has the group `id` if `{id}` is given.
        depth: Number of folders below `fixed` that a matching path has; None for any number.
        hidden: Whether names that begin with a dot are looked at.
    """

    text: str
    fixed: str
    regex: "re.Pattern[str]"
    depth: int | None
    hidden: bool

    def id_of(self, relative: str) -> str | None:
        """Read the id from a path below the fixed folder; None if the path does not match."""
        match = self.regex.fullmatch(relative)
        if match is None:
            return None
        found = match.groupdict().get("id") or os.path.splitext(relative)[0]
        return unicodedata.normalize("NFC", found)


def image_pattern(text: str) -> Pattern:
    """Read the pattern of images.

    Raises:
        UsageError: It has no wildcard, or braces that are neither `{id}` nor `{jpg,png}`.
    """
    if not _MAGIC.search(text):
        example = text.rstrip("/") + "/*.jpg" if not os.path.splitext(text)[1] else "photos/*.jpg"
        raise UsageError(
            f"images must be a pattern of many files, found '{text}'; write it with a wildcard, as "
            f"'{example}'"
        )
    return _pattern(text, wildcards=True)


def label_pattern(text: str) -> Pattern:
    """Read the pattern of the label files of a task.

    Raises:
        UsageError: It lacks `{id}`, has other braces, or `*`.
    """
    if ID not in text or "*" in text:
        raise UsageError(
            f"a label must name the file of each image by {ID} and without *, as "
            f"'masks/{ID}.png', or columns of a table, as 'table.csv:age'; found '{text}'"
        )
    return _pattern(text, wildcards=False)


def find_files(pattern: Pattern, root: Path) -> Matches:
    """List the files that match a pattern; the same whatever their order on disk.

    Anything that is no folder counts, and a folder that matches too, so that reading it says why it
    is no image.

    Args:
        pattern: The pattern.
        root: Folder to which the pattern is relative.
    """
    matches = Matches()
    places: dict[str, list[Path]] = {}
    start = Path(os.path.normpath(root / pattern.fixed)) if pattern.fixed else root
    for relative in _walk(start, depth=pattern.depth, hidden=pattern.hidden):
        frame_id = pattern.id_of(relative)
        if frame_id is None:
            continue
        if len(frame_id) > LONGEST_ID or not _is_text(relative):
            matches.unnameable.append(start / relative)
        else:
            places.setdefault(frame_id, []).append(start / relative)
    for frame_id, paths in sorted(places.items()):
        matches.files[frame_id] = paths[0]
        if len(paths) > 1:
            matches.twice[frame_id] = paths
    return matches


def _walk(start: Path, *, depth: int | None, hidden: bool) -> Iterator[str]:
    """Yield all paths below a folder, with slashes, sorted; each real folder is entered once.

    Links to folders are followed; entering no folder twice ends loops of them.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [("", 0)]
    while waiting:
        below, level = waiting.pop()
        folder = start / below if below else start
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = sorted((entry.name, _is_folder(entry)) for entry in entries)
        except OSError:  # absent, or not ours to read: nothing in it can match
            continue
        folders = []
        for name, is_folder in found:
            if name.startswith(".") and not hidden:
                continue
            path = f"{below}/{name}" if below else name
            yield path
            if is_folder and (depth is None or level < depth):
                folders.append((path, level + 1))
        waiting += reversed(folders)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere or to itself
        return False


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _pattern(text: str, *, wildcards: bool) -> Pattern:
    parts = re.sub(r"/+", "/", text.replace(os.sep, "/")).removeprefix("./").split("/")
    magic = _MAGIC if wildcards else re.compile(r"\{")
    varying = next(i for i, part in enumerate(parts) if magic.search(part))
    rest = parts[varying:]
    fixed = "/".join(parts[:varying]) or ("/" if varying else "")
    suffix = _SUFFIX.search(rest[-1])
    stem = rest[-1][: suffix.start()] if suffix else rest[-1]
    pieces = ["(?:[^/]+/)*" if part == "**" else _regex(part, text, wildcards) + "/"
              for part in rest[:-1]]  # fmt: skip
    last = ".+" if rest[-1] == "**" else _regex(stem, text, wildcards)
    if suffix:
        last += f"(?i:{_regex(suffix[0], text, wildcards)})"
    regex = "".join([*pieces, last])
    # An id that is named twice, as in `{id}/{id}_rgb.png`, is the same in both places.
    first, *again = regex.split(_ID_GROUP)
    if again:
        regex = first + _ID_GROUP + "(?P=id)".join(again)
    unbounded = "**" in rest or any(ID in part for part in rest)
    return Pattern(
        text=text, fixed=fixed, regex=re.compile(regex, re.DOTALL),
        depth=None if unbounded else len(rest) - 1,
        hidden=any(part.startswith(".") for part in rest),
    )  # fmt: skip


_ID_GROUP = "(?P<id>.+?)"
_TOKEN = re.compile(r"\{[^{}]*\}|\[!?\]?[^\]/]*\]|\*+|\?|.", re.DOTALL)


def _regex(part: str, text: str, wildcards: bool) -> str:
    """Translate one part of a pattern, between slashes, into a regular expression."""
    return "".join(_token(token, text, wildcards) for token in _TOKEN.findall(part))


def _token(token: str, text: str, wildcards: bool) -> str:
    if token == ID:
        return _ID_GROUP
    if len(token) > 1 and token.startswith("{"):
        if wildcards and "," in token:
            return f"(?:{'|'.join(map(re.escape, token[1:-1].split(',')))})"
        raise UsageError(
            f"braces in a pattern must be {ID}{', or alternatives as {jpg,png}' * wildcards}; "
            f"found {token} in '{text}'"
        )
    if wildcards and token.startswith("*"):
        return "[^/]*"
    if wildcards and token == "?":
        return "[^/]"
    if wildcards and len(token) > 1 and token.startswith("["):
        inner = token[1:-1].replace("\\", r"\\")
        return f"[{'^/' + inner[1:] if inner.startswith('!') else inner}]"
    return re.escape(token)
