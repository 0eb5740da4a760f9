"""Carve the validation part off the official training part."""

import numpy as np
import torch
from numpy.typing import NDArray

from gatesearch.errors import DataError, UsageError


def split_validation(
    frames: int, *, validation: int, seed: int, labelled: NDArray[np.bool_] | None = None
) -> tuple[list[int], list[int]]:
    """Split the official training part: (training, validation) indices, each ascending.

    The validation part is drawn by `seed` alone, so that every method and trial has the same. Where
    frames lack labels, it is stratified: it has its share of the labelled frames of each task.

    Args:
        frames: Number of frames.
        validation: Number of frames to draw.
        seed: Seed of the draw.
        labelled: (frames, tasks) whether a frame has labels of a task; None if all have all.

    Raises:
        UsageError: No frames are to be drawn.
        DataError: Fewer than two frames would be left to train on.
    """
    if validation < 1:
        raise UsageError(
            "data.validation must be at least 1, the number of frames of the training part on "
            f"which choices are made, found {validation}"
        )
    if frames - validation < 2:
        raise DataError(
            f"data.validation must leave frames to train on: {validation} of {frames} are carved "
            "off; lower data.validation or raise data.train_frames"
        )
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(seed)).tolist()
    if labelled is not None:
        order = _stratified(order, labelled, validation)
    return sorted(order[validation:]), sorted(order[:validation])


def _stratified(order: list[int], labelled: NDArray[np.bool_], validation: int) -> list[int]:
    """Order frames so that the first `validation` have their share of the labels of each task.

    Iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", ECML
    2011): the task with the fewest frames left hands out its frames first, each to the part that
    lacks most of its labels. Unlike there, a task of at least two labelled frames wants one in
    either part, and the sizes of the parts are exact.

    Args:
        order: All frames, in random order.
        labelled: (frames, tasks) whether a frame has labels of a task.
        validation: Size of the first part.
    """
    count = labelled.sum(0)
    wanted = np.clip(count * (validation / len(order)), np.minimum(1, count // 2), None)
    # (part, task): labels that a part still wants; and frames for which it still has room.
    lacking = np.stack([wanted, np.maximum(count - wanted, 0)])
    room = [validation, len(order) - validation]
    parts: tuple[list[int], list[int]] = ([], [])
    left = np.array(order)
    while len(left):
        remaining = labelled[left].sum(0)
        if remaining.any():
            task = int(np.where(remaining > 0, remaining, len(order) + 1).argmin())
            has = labelled[left, task]
            lacks = lacking[:, task]
        else:  # frames without any label
            has, lacks = np.ones(len(left), bool), np.zeros(2)
        for frame in left[has].tolist():
            share = room[0] / sum(room)
            first = bool(room[0]) and (not room[1] or (lacks[0], share) > (lacks[1], 1 - share))
            part = 0 if first else 1
            parts[part].append(frame)
            lacking[part] -= labelled[frame]
            room[part] -= 1
        left = left[~has]
    return [*parts[0], *parts[1]]
