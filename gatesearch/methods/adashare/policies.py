"""Policies as data: the published ones, those of a file or a study, and their checks."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, RootModel, ValidationError

from gatesearch.errors import UsageError, unknown
from gatesearch.files import first_fault, read_bytes
from gatesearch.methods.adashare.plan import Policy

# 1 = the task selects the block, 0 = it skips the block; from the first block to the last.
Row = tuple[Annotated[int, Field(ge=0, le=1)], ...]


def _name_or_rows(value: object) -> object:
    """Refuse what is neither a name nor rows of 0 and 1; in a union pydantic names its types."""
    if value is None or isinstance(value, str):
        return value
    rows = value.values() if isinstance(value, Mapping) else [value]
    for row in rows:
        wrong = [row] if not isinstance(row, list | tuple) else [x for x in row if x not in (0, 1)]
        if wrong:
            raise ValueError(
                f"must be a name ({', '.join(PUBLISHED)}), a file that ends in .json, or a table, "
                f"task -> a list of 0 and 1, found {repr(wrong[0])[:80]}"
            )
    return value


Written = Annotated[str | dict[str, Row], BeforeValidator(_name_or_rows)]

# The policies whose cost the paper prints, which the authors' code holds at the end of
# models/deeplab_resnet.py (https://github.com/sunxm2357/AdaShare, commit 27e6fb5): ResNet-34 with
# semantic segmentation, surface normals and depth of NYU v2; segmentation and depth of Cityscapes.
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "nyu3": ("1111110111111111", "1111111110001111", "1111101111001111"),
    "cityscapes2": ("1111100101110111", "1101111110111111"),
}


class _File(RootModel[dict[str, Row]]):
    """What a policy's file holds: task -> 0 or 1 for each residual block."""


def read_policy(
    written: Written, *, tasks: Sequence[str], blocks: Sequence[str], folder: Path | None
) -> dict[str, Row]:
    """Read a policy, and refuse one of another network.

    Args:
        written: A name in `PUBLISHED`, a JSON file, or task -> 0 or 1 for each block.
        tasks: Names of the study's tasks, in order.
        blocks: Names of the backbone's residual blocks.
        folder: Folder of the study's file. A policy's file is relative to it, else to the working
            folder.

    Raises:
        UsageError: It is none of these, or of other tasks or another number of blocks.
    """
    if isinstance(written, dict):
        rows, place = written, "options.adashare.policy"
    elif written in PUBLISHED:
        published = PUBLISHED[written]
        if len(published) != len(tasks):
            raise UsageError(
                f"the policy '{written}' is of {len(published)} tasks, found {len(tasks)} "
                f"({', '.join(tasks)}); {_CURE}"
            )
        rows, place = dict(zip(tasks, map(_row, published), strict=True)), f"policy '{written}'"
    elif written.endswith(".json"):
        path = (folder or Path()) / written
        if not os.path.lexists(path):  # a built-in study lies in no folder of the user's
            path = Path(written) if os.path.lexists(written) else path
        rows, place = _read_file(path), str(path)
    else:
        raise UsageError(
            f"{unknown('policy', written, PUBLISHED)}; a file of your own must end in .json"
        )
    if set(rows) != set(tasks):
        raise UsageError(
            f"{place} must have a row for each task of the study, {', '.join(tasks)}, found "
            f"{_listed(rows)}; {_CURE}"
        )
    for task in tasks:
        if len(rows[task]) != len(blocks):
            raise UsageError(
                f"{place} must have 0 or 1 for each residual block of the backbone, {len(blocks)}, "
                f"found {len(rows[task])} for {task}; {_CURE}"
            )
    return {task: tuple(rows[task]) for task in tasks}


def policy_of(rows: Mapping[str, Row], tasks: Sequence[str]) -> Policy:
    """Return a policy that `read_policy` read as truth values, in the order of the tasks."""
    return tuple(tuple(map(bool, rows[task])) for task in tasks)


def shown(policy: Policy, tasks: Sequence[str]) -> str:
    """Show a policy in one line, as `semseg 1101, depth 1011`."""
    rows = ("".join(str(int(selected)) for selected in row) for row in policy)
    return ", ".join(f"{task} {row}" for task, row in zip(tasks, rows, strict=True))


_LONGEST = 200  # characters of names from a file in a message
_CURE = "a policy belongs to one backbone and its tasks: take another, or leave it out to learn one"


def _row(text: str) -> Row:
    return tuple(map(int, text))


def _listed(names: Iterable[str]) -> str:
    """List the names of a file, which may hold anything, in one line of bounded length."""
    line = " ".join(", ".join(names).split()) or "none"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _read_file(path: Path) -> dict[str, Row]:
    try:
        data = read_bytes(path)
        rows = _File.model_validate_json(data, strict=True).root
    except OSError as error:
        raise UsageError(
            f"no file of a policy {path} ({error.strerror}); name one relative to the study's "
            f"file or to this folder, or one of {', '.join(PUBLISHED)}"
        ) from error
    except ValidationError as error:
        raise UsageError(
            f"{path} must hold a JSON object, task -> a list of 0 and 1 for each residual block, "
            f"found a fault: {_listed([first_fault(error)])}; mend the file"
        ) from error
    except ValueError as error:  # a name that no file can have
        raise UsageError(f"no file of a policy {str(path)!r} ({error}); name another") from error
    # Pydantic keeps the last of several rows of one task.
    counts = Counter(name for name, _ in json.loads(data, object_pairs_hook=list))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UsageError(
            f"{path} must have one row for each task, found several for {_listed(twice)}; leave "
            "one of them"
        )
    return rows
