"""Read lists of images: one id or image path per line."""

import re
from dataclasses import dataclass
from pathlib import Path

from gatesearch.datasets.folder.tables import find_image
from gatesearch.datasets.image_files import read_user_file
from gatesearch.errors import DataError
from gatesearch.files import LARGEST_TABLE


@dataclass(frozen=True)
class ImageList:
    """A list of images.

    Attributes:
        frames: Ids, in the order of the list.
        unknown: Lines that name no image, with their numbers.
        twice: Ids that are named twice, with the numbers of the later lines.
    """

    frames: tuple[str, ...]
    unknown: tuple[tuple[str, int], ...]
    twice: tuple[tuple[str, int], ...]


def read_list(path: Path, names: dict[str, str]) -> ImageList:
    """Read a list.

    Args:
        path: The file; empty lines and those that begin with `#` are left out.
        names: Ways to name an image -> its id.

    Raises:
        DataError: It is missing, or not UTF-8 text.
    """
    try:
        text = read_user_file(path, limit=LARGEST_TABLE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be UTF-8 text: {error}; save it as UTF-8") from error
    frames: dict[str, None] = {}
    unknown, twice = [], []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        name = line.strip()
        frame_id = find_image(name, names, path.parent)
        if not name or (frame_id is None and name.startswith("#")):
            continue
        if frame_id is None:
            unknown.append((name, number))
        elif frame_id in frames:
            twice.append((frame_id, number))
        else:
            frames[frame_id] = None
    return ImageList(tuple(frames), tuple(unknown), tuple(twice))
