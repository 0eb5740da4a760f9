"""Affinity of tasks by representational similarity (Dwivedi & Roig, CVPR 2019).

For every block and stream, the dissimilarity of two frames is 1 - Pearson's correlation of their
features. The affinity of two tasks at a block is Spearman's correlation of these dissimilarities
over all pairs of frames, as in branched multi-task networks (Vandenhende et al., BMVC 2020). Here
features are averaged over a grid of 4 x 4 cells first, and a negative affinity counts as 0.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 4


def pooled(features: Tensor) -> Tensor:
    """Average features over a grid: (B, C x cells) in float64, on the processor.

    Args:
        features: Maps (B, C, H, W), or tokens (B, C, N), which as many cells divide in order.
    """
    if features.dim() == 4:
        cells = F.adaptive_avg_pool2d(features.float(), GRID)
    else:
        cells = F.adaptive_avg_pool1d(features.float().flatten(2), GRID**2)
    return cells.flatten(1).double().cpu()


def dissimilarities(features: Tensor) -> Tensor:
    """Return 1 - correlation of every pair of rows of (N, D) features, (N (N - 1) / 2,)."""
    rows = _standardised(features)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return 1 - (rows @ rows.T)[first, second]


def affinity(features: Sequence[Tensor]) -> Tensor:
    """Return the affinity of every pair of tasks, (T, T) in [0, 1], 1 on the diagonal.

    Args:
        features: For each task, (N, D) features of the same N frames.
    """
    ranks = torch.stack([_ranks(dissimilarities(x)) for x in features])
    rows = _standardised(ranks)
    return (rows @ rows.T).clamp(0, 1).fill_diagonal_(1)


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort().double()


def _standardised(rows: Tensor) -> Tensor:
    """Rows without their mean, of length 1; rows of equal values become 0."""
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1, eps=1e-12)
