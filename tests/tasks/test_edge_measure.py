"""odsF and oisF: by hand, and against a plain reference that shares no code with the package."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatesearch.datasets.scenes import render
from gatesearch.tasks.edge_measure import edge_counts, ods_ois, thin_edges


def f_of(probability: Tensor, target: Tensor, **options) -> tuple[float, float]:
    ods, ois = ods_ois(*edge_counts(probability, target, **options))
    return float(ods), float(ois)


def vertical(column: int, *, size: tuple[int, int] = (96, 128), wide: int = 1) -> Tensor:
    lines = torch.zeros(1, *size)
    lines[..., column : column + wide] = 1
    return lines


# --- a plain reference ---------------------------------------------------------------------------


def reference_thin(p: np.ndarray) -> np.ndarray:
    height, width = p.shape

    def read(i: int, j: int) -> float:  # the frame mirrored at its borders, again and again
        i, j = i % (2 * height), j % (2 * width)
        return p[min(i, 2 * height - 1 - i), min(j, 2 * width - 1 - j)]

    smoothed: dict[tuple[int, int], float] = {}

    def smooth(i: int, j: int) -> float:
        if (i, j) not in smoothed:
            steps = range(-4, 5)
            smoothed[i, j] = sum(
                (5 - abs(a)) * (5 - abs(b)) / 625 * read(i + a, j + b) for a in steps for b in steps
            )
        return smoothed[i, j]

    def second(i: int, j: int, a: tuple[int, int], b: tuple[int, int]) -> float:
        return sum(
            s * t / 4 * smooth(i + s * a[0] + t * b[0], j + s * a[1] + t * b[1])
            for s in (-1, 1)
            for t in (-1, 1)
        )

    along_x, along_y = (0, 1), (1, 0)
    ranked = np.zeros_like(p)
    for i, j in np.ndindex(height, width):
        place = (i + 0.3 * j) / (height + width)
        ranked[i, j] = p[i, j] + 1e-6 * smooth(i, j) + 1e-8 * place
    thin = np.zeros_like(p)
    for i in range(height):
        for j in range(width):
            if p[i, j] <= 0:
                continue
            xx, yy = second(i, j, along_x, along_x), second(i, j, along_y, along_y)
            xy = second(i, j, along_x, along_y)
            curvature = np.array([[xx, xy], [xy, yy]]).round(9)
            vector = np.array([1.0, 0.0])
            if xy.round(9) == 0 and xx.round(9) == yy.round(9):  # any direction would do
                vector = np.array([0.0, 1.0] if curvature.trace() < 0 else [1.0, 0.0])
            elif curvature.any():  # of two curvatures of equal magnitude, the upward one
                vectors = np.linalg.eigh(curvature).eigenvectors
                vector = vectors[:, 0 if curvature.trace() < 0 else 1]
            keep = True
            for sign in (-1, 1):
                x = min(max(j + sign * vector[0], 0), width - 1)
                y = min(max(i + sign * vector[1], 0), height - 1)
                x0, y0 = int(x), int(y)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                there = (
                    ranked[y0, x0] * (1 - (x - x0)) * (1 - (y - y0))
                    + ranked[y0, x1] * (x - x0) * (1 - (y - y0))
                    + ranked[y1, x0] * (1 - (x - x0)) * (y - y0)
                    + ranked[y1, x1] * (x - x0) * (y - y0)
                )
                keep = keep and not there > ranked[i, j] + 1e-12
            thin[i, j] = p[i, j] * keep
    return thin


def reference_matches(predicted: np.ndarray, true: np.ndarray, distance: float) -> int:
    """Largest one-to-one matching, each prediction trying all its partners in turn."""
    ps, ts = np.argwhere(predicted).tolist(), np.argwhere(true).tolist()
    owner: dict[int, int] = {}

    def find(p: int, seen: set[int]) -> bool:
        for t, place in enumerate(ts):
            if t in seen or math.dist(ps[p], place) > distance + 1e-9:
                continue
            seen.add(t)
            if t not in owner or find(owner[t], seen):
                owner[t] = p
                return True
        return False

    return sum(find(p, set()) for p in range(len(ps)))


def reference(probability: Tensor, target: Tensor, *, thresholds: int, tolerance: float):
    """(odsF, oisF), every threshold from the beginning."""
    levels = [k / (thresholds + 1) for k in range(1, thresholds + 1)]
    rows = []  # per frame: [(matched, predicted, true) per threshold]
    for p, t in zip(probability.double().numpy(), target.numpy(), strict=True):
        thin = reference_thin(p)
        distance = tolerance * math.hypot(*p.shape)
        rows.append(
            [
                (
                    reference_matches(cut := (thin >= level) & (t != 255), t == 1, distance),
                    int(cut.sum()),
                    int((t == 1).sum()),
                )
                for level in levels
            ]
        )

    def f(m: int, p: int, t: int) -> Fraction:  # exact, as equal F decide which threshold is best
        precision, recall = Fraction(int(m), max(int(p), 1)), Fraction(int(m), max(int(t), 1))
        return 2 * precision * recall / (precision + recall) if m else Fraction(0)

    sums = np.array(rows).sum(0)
    if not sums[0, 2]:
        return math.nan, math.nan
    best = [max(reversed(frame), key=lambda counts: f(*counts)) for frame in rows]
    ods = max(f(*counts) for counts in sums.tolist())
    return float(ods), float(f(*np.array(best).sum(0).tolist()))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    thresholds=st.sampled_from([1, 4, 9]),
    tolerance=st.sampled_from([0.0, 0.06, 0.1, 0.25]),
    density=st.sampled_from([0.05, 0.3]),
    coarse=st.booleans(),
)
def test_equals_the_reference_on_random_maps(
    seed, size, thresholds, tolerance, density, coarse
) -> None:
    g = torch.Generator().manual_seed(seed)
    probability = torch.rand(3, *size, generator=g)
    if coarse:  # many ties
        probability = (probability * 3).round() / 3
    target = (torch.rand(3, *size, generator=g) < density).byte()
    target[torch.rand(3, *size, generator=g) < 0.1] = 255
    options = {"thresholds": thresholds, "tolerance": tolerance}
    ours, theirs = f_of(probability, target, **options), reference(probability, target, **options)
    assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True)


def blurred(target: Tensor, seed: int) -> Tensor:
    """What a network might predict: soft lines, some noise."""
    kernel = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05])
    kernel = (kernel[:, None] * kernel)[None, None]
    soft = torch.nn.functional.conv2d(target[:, None].float(), kernel, padding=2)[:, 0]
    noise = torch.randn(soft.shape, generator=torch.Generator().manual_seed(seed))
    return (10 * (soft - 0.3) + 0.7 * noise).sigmoid()


def edges_of_scenes(*numbers: int, size: tuple[int, int]) -> Tensor:
    frames = [render(number, split="test", size=size)["edges"] for number in numbers]
    return torch.from_numpy(np.stack(frames))


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_reference_on_edges_of_rooms(seed: int) -> None:
    target = edges_of_scenes(2 * seed, 2 * seed + 1, size=(24, 32))
    target[:, :3] = 255
    options = {"thresholds": 9, "tolerance": 0.05}
    probability = blurred(target == 1, seed)
    ours, theirs = f_of(probability, target, **options), reference(probability, target, **options)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0.4 < ours[0] <= ours[1] < 1


# --- by hand -------------------------------------------------------------------------------------


def test_a_perfect_line_has_one() -> None:
    for column in (0, 1, 40, 126, 127):
        line = vertical(column)
        assert f_of(line, line.byte()) == (1, 1)
        assert f_of(line.mT, line.mT.byte()) == (1, 1)


def test_a_line_one_pixel_off_has_one_and_two_pixels_off_nothing() -> None:
    # the diagonal of 96 x 128 is 160, and 0.0075 of it 1.2 pixels
    line = vertical(50)
    for step, expected in ((-2, 0), (-1, 1), (0, 1), (1, 1), (2, 0)):
        moved = vertical(50 + step)
        assert f_of(moved, line.byte()) == (expected, expected)
        assert f_of(moved.mT, line.mT.byte()) == (expected, expected)


def test_a_tolerance_reaches_exactly_that_far() -> None:
    size = (30, 40)  # diagonal 50
    for far in (1, 2, 3, 4, 5, 7):
        shifted, line = vertical(20 + far, size=size), vertical(20, size=size).byte()
        assert f_of(shifted, line, tolerance=far / 50) == (1, 1)
        assert f_of(shifted, line, tolerance=(far - 0.01) / 50) == (0, 0)


@pytest.mark.parametrize("wide", [2, 3, 5])
@pytest.mark.parametrize("turned", [False, True])
def test_a_thick_line_is_thinned_to_one_pixel(wide: int, turned: bool) -> None:
    thick = vertical(30, wide=wide)
    line = vertical(30 + wide // 2)
    if turned:
        thick, line = thick.mT.contiguous(), line.mT.contiguous()
    counts = edge_counts(thick, line.byte())
    assert counts[1].tolist() == [int(line.sum())] * 99
    assert ods_ois(*counts) == (1, 1)


@pytest.mark.parametrize("degrees", [0, 15, 30, 45, 60, 75, 90, 120, 150])
def test_a_soft_ridge_is_thinned_to_its_crest(degrees: int) -> None:
    y, x = torch.meshgrid(torch.arange(60.0) - 30, torch.arange(80.0) - 40, indexing="ij")
    angle = math.radians(degrees)
    far = x * math.cos(angle) + y * math.sin(angle)
    ridge = (-(far**2) / (2 * 2.5**2)).exp()[None]
    thin = thin_edges(ridge.double().numpy(), at_least=0.1)[0] > 0
    inner = np.zeros_like(thin)
    inner[5:-5, 5:-5] = True
    thin &= inner
    assert np.abs(far.numpy())[thin].max() <= 0.75
    # one pixel per step along the longer axis, no hole in the line; staircases at most double it
    steps = thin.any(1) if abs(math.cos(angle)) >= abs(math.sin(angle)) else thin.any(0)
    assert steps[5:-5].all()
    assert thin.sum() <= 1.35 * steps.sum()


def test_f_is_of_sums_over_frames_and_thresholds_differ() -> None:
    """Two frames, each with a line of 10 true pixels; thresholds 1/4, 1/2, 3/4.

    The first predicts it at 0.8, and at 0.3 a line of ten pixels elsewhere. The second predicts its
    line at 0.3 alone.

        threshold   frame 1 (M, P)   frame 2   sum: M, P, T    F
        0.25        10, 20           10, 10    20, 30, 20      40/50
        0.50        10, 10            0,  0    10, 10, 20      20/30
        0.75        10, 10            0,  0    10, 10, 20      20/30

    Best per frame: (10, 10) and (10, 10), so oisF = 40/40.
    """
    probability = torch.zeros(2, 10, 40)
    probability[0, :, 10], probability[0, :, 30], probability[1, :, 10] = 0.8, 0.3, 0.3
    target = torch.zeros(2, 10, 40, dtype=torch.uint8)
    target[:, :, 10] = 1
    counts = edge_counts(probability, target, thresholds=3, tolerance=0.01)
    assert [c.tolist() for c in counts] == [[20, 10, 10], [30, 10, 10], 20, 20, 20]
    assert [float(f) for f in ods_ois(*counts)] == pytest.approx([0.8, 1.0])


def test_a_probability_equal_to_a_threshold_reaches_it() -> None:
    counts = edge_counts(0.5 * vertical(50), vertical(50).byte(), thresholds=3)
    assert counts[1].tolist() == [96, 96, 0]


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("size", [(6, 8), (1, 5), (5, 1), (1, 1)])
def test_a_constant_map_is_one_line_at_its_end(value: float, size: tuple[int, int]) -> None:
    thin = thin_edges(np.full((1, *size), value))
    expected = np.zeros_like(thin)
    expected[..., -1] = value
    assert (thin == expected).all()


def test_rounding_errors_of_a_slope_set_no_direction() -> None:
    slope = np.broadcast_to(0.1 + 0.01 * np.arange(60), (1, 40, 60))
    assert not thin_edges(slope)[0, :, 10:-10].any()  # its neighbour to the right is higher


def test_each_true_pixel_is_matched_once() -> None:
    # two lines, each one pixel from the true one: half of what is predicted finds no partner
    probability = vertical(49) + vertical(51)
    counts = edge_counts(probability, vertical(50).byte())
    assert (counts[0][0], counts[1][0], counts[2]) == (96, 192, 96)


def test_a_later_pixel_moves_an_earlier_one_to_another_partner() -> None:
    # places:    0 1 2 3 4 5
    # predicted    A   B       A 0.55, B 0.95
    # true           x   y     A reaches only x, B both; B comes first and takes x
    probability = torch.tensor([[[0, 0.55, 0, 0.95, 0, 0]]])
    target = torch.tensor([[[0, 0, 1, 0, 1, 0]]], dtype=torch.uint8)
    counts = edge_counts(probability, target, thresholds=9, tolerance=1 / math.hypot(1, 6))
    assert counts[0].tolist() == counts[1].tolist() == [2] * 5 + [1] * 4


def test_without_true_edges_there_is_no_figure() -> None:
    none = torch.zeros(2, 8, 8)
    for probability in (none, none + 0.5, torch.rand(2, 8, 8)):
        assert all(math.isnan(f) for f in f_of(probability, none.byte()))


def test_nothing_predicted_has_zero() -> None:
    assert f_of(torch.zeros(1, 96, 128), vertical(50).byte()) == (0, 0)
    assert f_of(torch.full((1, 96, 128), torch.nan), vertical(50).byte()) == (0, 0)


def test_false_edges_in_a_frame_without_any_count() -> None:
    line, empty = vertical(50), torch.zeros(1, 96, 128)
    target = torch.cat([line, empty]).byte()
    ods, ois = f_of(torch.cat([line, 0.6 * line]), target)
    assert (ods, ois) == (1, 1)  # at a threshold above 0.6
    assert f_of(torch.cat([line, line]), target) == pytest.approx((2 / 3, 2 / 3))


def test_frames_and_pixels_without_labels_take_no_part() -> None:
    line = vertical(50)
    unlabelled = torch.full((1, 96, 128), 255, dtype=torch.uint8)
    counts = edge_counts(torch.cat([line, line]), torch.cat([line.byte(), unlabelled]))
    assert all(
        torch.equal(a, b) for a, b in zip(counts, edge_counts(line, line.byte()), strict=True)
    )
    assert [int(c.sum()) for c in edge_counts(line, unlabelled)] == [0] * 5
    half = line.byte()
    half[:, :, 60:] = 255
    assert f_of(line + vertical(90), half) == (1, 1)


def test_batches_add_up() -> None:
    target = edges_of_scenes(*range(4), size=(24, 32))
    probability = blurred(target == 1, 0)
    whole = edge_counts(probability, target)
    parts = [edge_counts(probability[i : i + 1], target[i : i + 1]) for i in range(4)]
    sums = [torch.stack(part).sum(0) for part in zip(*parts, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(whole, sums, strict=True))
    assert all(not c.is_floating_point() for c in whole)


def test_what_is_given_is_not_changed() -> None:
    target = edges_of_scenes(0, size=(24, 32))
    probability = blurred(target == 1, 0)
    kept = probability.clone(), target.clone()
    edge_counts(probability, target)
    assert torch.equal(probability, kept[0])
    assert torch.equal(target, kept[1])


def test_predictions_in_half_precision_are_read() -> None:
    assert f_of(vertical(50).bfloat16(), vertical(50).byte()) == (1, 1)
