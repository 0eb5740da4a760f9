"""Drawings by value: alone, in the report, and by `gatesearch predict`."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from gatesearch.drawing import DRAWINGS, palette
from gatesearch.export import Card, Model
from gatesearch.export.draw import draw_predictions
from gatesearch.report.layout import lay_out
from gatesearch.report.predictions import sections
from gatesearch.results import StudyRecord, TaskInfo
from gatesearch.tasks import TASKS

METRES = (1.0, 2.0, 5.0, 9.0)
# Directions right, down, away and towards the camera.
AXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)]
AXES_DRAWN = [(255, 128, 128), (128, 255, 128), (128, 128, 255), (128, 128, 0)]


def scale(metres: float, low: float, high: float) -> tuple[int, ...]:
    share = (metres - low) / (high - low)
    return tuple(round(255 * channel) for channel in colormaps["viridis"](share)[:3])


def drawn(name: str, row: list, dtype: str) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in DRAWINGS[name].draw(np.array([row], dtype))[0].tolist()]


class TestAlone:
    def test_every_kind_of_task_names_a_drawing(self) -> None:
        assert {kind.drawing for kind in TASKS.values()} == set(DRAWINGS)
        for drawing in DRAWINGS.values():
            assert "Black: " in drawing.legend

    def test_classes_are_distinct_and_ignored_ones_black(self) -> None:
        colors = palette().astype(int)
        gaps = [np.abs(colors[i] - colors[j]).sum() for i in range(40) for j in range(i)]
        assert min(gaps) > 50
        assert colors[:255].sum(1).min() > 100
        shown = drawn("classes", [255, 0, 39], "u1")
        assert shown == [(0, 0, 0), tuple(colors[0]), tuple(colors[39])]

    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    def test_a_range_is_a_colour_scale_and_unknown_black(self, dtype) -> None:
        shown = drawn("range", [*METRES, 99.0, 0.0, -1.0, np.nan], dtype)
        assert shown[:4] == [scale(m, 0, 10) for m in METRES]
        assert len(set(shown[:4])) == 4
        assert shown[4] == scale(10, 0, 10)  # beyond the scale: its end
        assert shown[5:] == [(0, 0, 0)] * 3

    def test_limits_come_from_known_truth(self) -> None:
        truth = np.array([0.0, np.nan, 2.0, 4.0, 6.0])
        low, high = DRAWINGS["range"].limits_of(truth)
        assert (low, high) == pytest.approx((2.08, 5.92))  # 2 % of the way between neighbours
        assert DRAWINGS["range"].limits_of(np.zeros(3)) == (0.0, 1.0)
        assert [DRAWINGS[name].limits_of(truth) for name in ("classes", "certainty")] == [None] * 2
        shown = DRAWINGS["range"].draw(np.array([[2.0, 4.0]]), (2.0, 6.0))
        assert [tuple(pixel) for pixel in shown[0].tolist()] == [scale(m, 2, 6) for m in (2, 4)]

    @pytest.mark.parametrize("length", [0.5, 1.0, 2.0])
    def test_directions_show_the_axes_whatever_their_length(self, length) -> None:
        vectors = [tuple(length * x for x in axis) for axis in AXES] + [(0, 0, 0)]
        assert drawn("directions", vectors, "f2") == [*AXES_DRAWN, (0, 0, 0)]

    def test_certainty_darkens_and_ignored_is_black(self) -> None:
        assert drawn("certainty", [0, 1, 255], "u1") == [(255,) * 3, (55,) * 3, (0,) * 3]
        shown = drawn("certainty", [0.0, 0.25, 0.5, 1.0, np.nan], "f4")
        assert shown == [(255,) * 3, (205,) * 3, (155,) * 3, (55,) * 3, (0,) * 3]

    def test_it_needs_no_torch_and_no_matplotlib_to_import(self) -> None:
        code = (
            "import sys, gatesearch.drawing; assert not {'torch', 'matplotlib'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


# kind -> head's output at four pixels (4, channels), labels of the same, colours of both.
SCORES = {
    "semseg": [(9, 0, 0), (0, 9, 0), (0, 0, 9), (0, 9, 0)],
    "depth": [(m,) for m in METRES],
    "normals": [tuple(3 * x for x in axis) for axis in AXES],
    "edges": [(-40,), (0,), (np.log(3),), (40,)],
    "saliency": [(-40,), (0,), (np.log(3),), (40,)],
}
LABELS = {
    "semseg": np.array([0, 1, 2, 1], "u1"),
    "depth": np.array(METRES, "f4"),
    "normals": np.array(AXES, "f2"),
    "edges": np.array([0, 0.5, 0.75, 1], "f4"),
    "saliency": np.array([0, 0.5, 0.75, 1], "f4"),
}
GREYS = [(255,) * 3, (155,) * 3, (105,) * 3, (55,) * 3]
COLOURS = {
    "semseg": [tuple(palette()[i].tolist()) for i in (0, 1, 2, 1)],
    "depth": [scale(m, 0, 10) for m in METRES],
    "normals": AXES_DRAWN,
    "edges": GREYS,
    "saliency": GREYS,
}


def test_predict_draws_every_kind_by_its_values(tmp_path) -> None:
    cards = {
        # Names that are not the kinds' own: only the kind decides.
        f"my_{kind}": {"kind": kind, "classes": len(scores[0]), "values": "", "metric": "x"}
        | {"measured": {}}
        for kind, scores in SCORES.items()
    }
    card = Card(study="s", fingerprint="f", protocol="p", network="n", size=(1, 4), gflops=1.0,
                params_m=1.0, tasks=cards)  # fmt: skip
    outputs = [np.array(s, np.float32).T[None, :, None] for s in SCORES.values()]
    Image.new("RGB", (4, 1)).save(tmp_path / "photo.png")
    model = Model(card, lambda image: outputs)
    written = list(draw_predictions(model, tmp_path / "photo.png", tmp_path))
    assert [path.name for path in written] == [f"photo.my_{kind}.png" for kind in SCORES]
    for path, kind in zip(written, SCORES, strict=True):
        with Image.open(path) as picture:
            shown = [tuple(pixel) for pixel in np.asarray(picture)[0].tolist()]
        assert shown == COLOURS[kind], kind


def test_the_report_draws_every_kind_by_its_values(tmp_path) -> None:
    # The unit says nothing: this depth is in feet, and one of the classes is alone.
    infos = tuple(
        TaskInfo(f"my_{kind}", "x", "ft", True, kind, TASKS[kind].drawing) for kind in LABELS
    )
    arrays = {f"truth.my_{kind}": values[None, None] for kind, values in LABELS.items()}
    np.savez(tmp_path / "p.npz", image=np.zeros((1, 1, 4, 3), np.uint8), **arrays)
    record = StudyRecord("s", "f", {}, "p", "", infos, predictions=tmp_path / "p.npz")
    limits = DRAWINGS["range"].limits_of(LABELS["depth"])
    expected = COLOURS | {
        "depth": [scale(min(max(m, limits[0]), limits[1]), *limits) for m in METRES]
    }
    figures = lay_out(sections(record))
    pictures = [axes for figure in figures for axes in figure.axes if axes.images]
    words = " ".join(text.get_text() for figure in figures for text in figure.texts)
    for kind, axes in zip(LABELS, pictures, strict=True):
        truth = axes.images[1].get_array()
        assert [tuple(pixel) for pixel in truth[0].tolist()] == expected[kind], kind
        assert DRAWINGS[TASKS[kind].drawing].legend in words
    scales = [axes for figure in figures for axes in figure.axes if not axes.images]
    assert len(scales) == 1  # that of depth
