"""Draw the parts of frames by their shares, from a seed.

Parts are drawn so that frames of one group stay together, and every part has its share of the
labels of each task and of each class of whole images (iterative stratification: Sechidis,
Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011, here over groups).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PartName = Literal["train", "validation", "test"]
PARTS: tuple[PartName, ...] = ("train", "validation", "test")
# Words that a column `split` may have.
PART_OF_WORD: dict[str, PartName] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """Frames that must be in the same part.

    Attributes:
        name: Name of their group, or the id of a single frame.
        frames: Ids.
        features: What should be in every part -> number of frames that have it.
    """

    name: str
    frames: tuple[str, ...]
    features: Mapping[str, int]


def make_units(
    frames: Iterable[str], *, groups: Mapping[str, str], features: Mapping[str, Sequence[str]]
) -> list[Unit]:
    """Gather frames into units.

    Args:
        frames: Ids.
        groups: Id -> name of its group; a frame without one is a unit by itself.
        features: Id -> what should be in every part.
    """
    members: dict[tuple[bool, str], list[str]] = {}
    for frame in sorted(frames):
        key = (True, groups[frame]) if frame in groups else (False, frame)
        members.setdefault(key, []).append(frame)
    return [
        Unit(name, tuple(ids), Counter(f for i in ids for f in features.get(i, ())))
        for (_, name), ids in members.items()
    ]


def draw_parts(
    units: Sequence[Unit], shares: Mapping[PartName, float], *, seed: int
) -> dict[str, PartName]:
    """Divide units into parts, the same whatever their order.

    The rarest feature is handled first: each unit that has it goes to the part that lacks most of
    it, then to the part that lacks most frames. The last units go to parts that are still empty.

    Args:
        units: All units.
        shares: Part -> its share of the frames; the sum is 1.
        seed: Draws among equals.

    Returns:
        Id -> its part.
    """
    parts = [part for part, share in shares.items() if share > 0]
    order = sorted(units, key=lambda unit: _draw(unit.name, seed))
    frames = sum(len(unit.frames) for unit in units)
    lacking = dict(zip(parts, _wanted(frames, [shares[p] for p in parts]), strict=True))
    totals = Counter[str]()
    having: dict[str, list[int]] = {}  # feature -> units, by their place in `order`
    for index, unit in enumerate(order):
        totals.update(unit.features)
        for feature in unit.features:
            having.setdefault(feature, []).append(index)
    lacking_of = {
        feature: dict(zip(parts, _wanted(count, [shares[p] for p in parts]), strict=True))
        for feature, count in totals.items()
    }
    result: dict[int, PartName] = {}
    filled: set[PartName] = set()

    def assign(index: int, feature: str | None) -> None:
        by_feature = lacking_of[feature] if feature is not None else dict.fromkeys(parts, 0.0)
        empty = [part for part in parts if part not in filled]
        open_parts = empty if len(order) - len(result) <= len(empty) else parts
        part = max(open_parts, key=lambda part: (by_feature[part], lacking[part]))
        result[index] = part
        filled.add(part)
        unit = order[index]
        lacking[part] -= len(unit.frames)
        for name, count in unit.features.items():
            lacking_of[name][part] -= count

    # What fewer units have than there are parts cannot be in every part.
    shared = [feature for feature, units_with in having.items() if len(units_with) >= len(parts)]
    for feature in sorted(shared, key=lambda feature: (len(having[feature]), feature)):
        # Large groups first, as small ones can fill what is left.
        for index in sorted(having[feature], key=lambda index: -len(order[index].frames)):
            if index not in result:
                assign(index, feature)
    for index in range(len(order)):
        if index not in result:
            assign(index, None)
    return {frame: part for index, part in result.items() for frame in order[index].frames}


def _wanted(count: int, shares: Sequence[float]) -> list[float]:
    """Number of frames that each part should get: its share, but one at least where there are."""
    wanted = [share * count for share in shares]
    if count >= len(shares):
        raised = [max(1.0, value) for value in wanted]
        largest = max(range(len(raised)), key=raised.__getitem__)
        raised[largest] -= sum(raised) - count
        return raised
    return wanted


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()
