"""Drawings by value: alone, in the report, and by `gatesearch predict`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import ExifTags, Image, ImageOps

from gatesearch.answers import ANSWERS
from gatesearch.drawing import DRAWINGS, OVERLAYS, palette
from gatesearch.export import Card, Model
from gatesearch.export.draw import draw_predictions, predict_file
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
        tasks = [kind() for kind in TASKS.values()]
        assert {task.drawing for task in tasks if task.storage.dense} == set(DRAWINGS)
        assert {task.drawing for task in tasks if not task.storage.dense} == set(ANSWERS)
        assert set(OVERLAYS) <= set(ANSWERS)
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

    def test_directions_that_are_not_finite_are_unknown(self) -> None:
        vectors = [(np.nan, 0, 1), (np.inf, 0, 0), (0, -np.inf, 0), (3e38, 0, 0)]
        assert drawn("directions", vectors, "f4") == [(0, 0, 0)] * 3 + [AXES_DRAWN[0]]

    def test_certainty_darkens_and_ignored_is_black(self) -> None:
        assert drawn("certainty", [0, 1, 255], "u1") == [(255,) * 3, (55,) * 3, (0,) * 3]
        shown = drawn("certainty", [0.0, 0.25, 0.5, 1.0, np.nan], "f4")
        assert shown == [(255,) * 3, (205,) * 3, (155,) * 3, (55,) * 3, (0,) * 3]

    def test_it_needs_no_torch_and_no_matplotlib_to_import(self) -> None:
        code = (
            "import sys, gatesearch.answers, gatesearch.drawing; "
            "assert not {'torch', 'matplotlib'} & set(sys.modules)"
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


def model_of(scores: dict[str, list], kinds: dict[str, str]) -> Model:
    """A model that predicts the same whatever the image.

    Args:
        scores: Task -> output of its head at the pixels of one row.
        kinds: Task -> its kind.
    """
    cards = {
        name: {"kind": kinds[name], "classes": len(outputs[0]), "metric": "x", "measured": {}}
        | {"values": TASKS[kinds[name]].output_meaning}
        for name, outputs in scores.items()
    }
    width = len(next(iter(scores.values())))
    card = Card(study="s", fingerprint="f", protocol="p", network="n", size=(1, width), gflops=1.0,
                params_m=1.0, tasks=cards)  # fmt: skip
    outputs = [np.array(s, np.float32).T[None, :, None] for s in scores.values()]
    return Model(card, lambda image: outputs)


def picture_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def colours(row: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in row.tolist()]


def test_predict_draws_every_kind_by_its_values_and_keeps_them(tmp_path) -> None:
    # Names that are not the kinds' own, and one that numpy's own function cannot store: only the
    # kind decides.
    names = {kind: f"my_{kind}" for kind in SCORES} | {"saliency": "file"}
    scores = {names[kind]: outputs for kind, outputs in SCORES.items()}
    Image.new("RGB", (4, 1)).save(tmp_path / "photo.png")
    model = model_of(scores, {name: kind for kind, name in names.items()})
    written = list(
        draw_predictions(model.card, predict_file(model, tmp_path / "photo.png"), tmp_path)
    )
    expected = [f"photo.{name}.png" for name in scores] + ["photo.values.npz"]
    assert [w.path.name for w in written] == expected
    for kind, name in names.items():
        picture = picture_of(tmp_path / f"photo.{name}.png")
        assert colours(picture[0, :4]) == COLOURS[kind], kind
        assert (len(picture) > 1) == (kind == "depth")
    scales = {w.path.name: w.scale for w in written if w.scale}
    assert scales == {"photo.my_depth.png": "0 to 10 metres"}
    with np.load(tmp_path / "photo.values.npz") as kept:
        assert set(kept.files) == set(scores)
        for kind, name in names.items():
            np.testing.assert_allclose(kept[name][0], LABELS[kind], rtol=1e-6, atol=1e-9)
        assert kept["my_semseg"].dtype == np.uint8
        assert kept["my_depth"].dtype == np.float32
        assert kept["my_depth"].tolist() == [list(METRES)]  # to the bit


@pytest.mark.parametrize(
    ("metres", "high"),
    [
        (METRES, 10), ((0.2, 0.5, 0.7, 10.0), 10), ((12.0, 25.0, 49.0, 50.0), 50),
        ((5.0, 40.0, 70.0, 99.0), 100), ((100.0, 200.0, 400.0, 1100.0), 2000),
        ((0.02, 0.05, 0.14, 0.19), 0.2), ((0.5, 0.6, 0.7, 0.9), 1), ((-1.0, 0.0, -2.0, -3.0), 10),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(4, 1), (900, 50)])
def test_depth_is_told_by_a_colour_bar_with_its_range(tmp_path, metres, high, size) -> None:
    Image.new("RGB", size).save(tmp_path / "photo.png")
    model = model_of({"depth": [(m,) for m in metres]}, {"depth": "depth"})
    written = list(
        draw_predictions(model.card, predict_file(model, tmp_path / "photo.png"), tmp_path)
    )
    assert written[0].scale == f"0 to {high:g} metres"
    picture = picture_of(written[0].path)
    step = size[0] // 4
    shown = colours(picture[0, : size[0] : step])
    black = (0, 0, 0)
    assert shown == [scale(m, 0, high) if m > 0 else black for m in metres]
    # White above and below the bar; the ends of the scale at its ends; the text below.
    letters = 22 if size[0] == 900 else 11
    below = picture[size[1] :]
    assert len(below) == 3 * letters
    bar = below[letters // 2 + 1]
    assert tuple(bar[0]) == scale(0, 0, 1)
    assert tuple(bar[-1]) == scale(1, 0, 1)
    assert (below[: letters // 2] == 255).all()
    text = below[letters // 2 + letters :]
    left, right = text[:, : letters // 2], text[:, -letters:]
    assert left.min() < 100
    assert right.min() < 100


def test_colours_of_depth_can_be_read_back_by_the_bar(tmp_path) -> None:
    """A reader finds each depth on the bar, at its share of the range."""
    Image.new("RGB", (400, 40)).save(tmp_path / "photo.png")
    model = model_of({"depth": [(m,) for m in METRES]}, {"depth": "depth"})
    written = list(
        draw_predictions(model.card, predict_file(model, tmp_path / "photo.png"), tmp_path)
    )
    picture = picture_of(written[0].path).astype(int)
    bar = picture[40 + 11]
    for i, metres in enumerate(METRES):
        distance = np.abs(bar - picture[20, 100 * i + 50]).sum(1)
        share = np.flatnonzero(distance == distance.min()).mean() / (len(bar) - 1)
        assert 10 * share == pytest.approx(metres, abs=0.05)


def exif_of(value: bytes) -> bytes:
    """EXIF that holds one entry, the orientation."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12" + value


BROKEN_EXIF = {
    "cut": exif_of(b"\0\3\0\0"),
    "text": exif_of(b"\0\2\0\0\0\2a\0\0\0\0\0\0\0"),
    "float": exif_of(b"\0\x0b\0\0\0\1\x40\xc0\0\0\0\0\0\0"),
    "99": exif_of(b"\0\3\0\0\0\1\0\x63\0\0\0\0\0\0"),
    "far": exif_of(b"\0\3\0\0\0\x63\xff\xff\xff\xff\0\0\0\0"),
    "no TIFF": b"Exif\0\0garbage",
    "empty": b"Exif\0\0",
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_images_with_broken_exif_are_drawn(tmp_path, exif, form) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", form, exif=exif)
    model = model_of({"depth": SCORES["depth"]}, {"depth": "depth"})
    written = list(
        draw_predictions(model.card, predict_file(model, tmp_path / "photo.jpg"), tmp_path)
    )
    shown = colours(picture_of(written[0].path)[0, :8:2])
    assert shown == COLOURS["depth"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_the_camera_says(tmp_path, orientation, form) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(pixels).save(tmp_path / "photo", form, exif=exif, **options)
    with Image.open(tmp_path / "photo") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    seen = []
    model = model_of({"depth": SCORES["depth"]}, {"depth": "depth"})
    height, width = expected.shape[:2]
    card = model.card.model_copy(update={"size": (height, width)})
    outputs = [np.ones((1, 1, height, width), np.float32)]
    model = Model(card, lambda image: seen.append(image) or outputs)
    list(draw_predictions(model.card, predict_file(model, tmp_path / "photo"), tmp_path))
    np.testing.assert_array_equal(seen[0][0].transpose(1, 2, 0), expected)


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
