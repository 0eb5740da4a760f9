"""Guesses of the kind of a task from its labels: each with its options, by value."""

import numpy as np
import pytest
from PIL import Image

from gatesearch.datasets.folder.guess_columns import guess_from_columns
from gatesearch.datasets.folder.guess_files import guess_from_files, survey_labels
from gatesearch.errors import DataError, UsageError
from gatesearch.tasks.attributes import Attributes
from gatesearch.tasks.normals import Normals

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 5, (8, 9)).astype(np.uint8)
BLOB = np.zeros((40, 40), np.uint8)
BLOB[10:30, 10:30] = 1
SOFT = BLOB * 255
SOFT[10] = np.linspace(0, 255, 40)
NORMALS = RNG.normal(size=(8, 9, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=2, keepdims=True)
MILLIMETRES = RNG.integers(400, 9000, (8, 9)).astype(np.uint16)


def with_ignored(array, value):
    changed = array.copy()
    changed[0] = value
    return changed


@pytest.mark.parametrize(
    ("name", "array", "kind", "options"),
    [
        ("things", CLASSES, "semseg", {"classes": 5}),
        ("things", with_ignored(CLASSES, 255), "semseg", {"classes": 5, "ignore": 255}),
        ("things", with_ignored(CLASSES, 99), "semseg", {"classes": 5, "ignore": 99}),
        ("things", with_ignored(CLASSES.astype(np.int16), -1), "semseg",
         {"classes": 5, "ignore": -1}),
        ("things", CLASSES.astype(np.uint16), "semseg", {"classes": 5}),
        ("things", CLASSES + 1, "semseg", {"classes": 5, "values": [1, 2, 3, 4, 5]}),
        ("things", np.array([0, 7, 11, 26], np.uint8)[CLASSES % 4], "semseg",
         {"classes": 4, "values": [0, 7, 11, 26]}),
        ("my_classes", CLASSES % 2, "semseg", {"classes": 2}),
        ("person", BLOB, "saliency", {}),
        ("person", BLOB * 255, "saliency", {"positive": 255}),
        ("person", with_ignored(BLOB, 255), "saliency", {}),
        ("person", SOFT, "saliency", {"threshold": 128}),
        ("person", np.array([0, 128, 255], np.uint8)[CLASSES % 3], "saliency",
         {"positive": 255, "ignore": 128}),
        ("edges", BLOB * 255, "edges", {"positive": 255}),
        ("depth", MILLIMETRES, "depth", {"scale": 0.001}),
        ("depth", with_ignored(MILLIMETRES, 65535), "depth", {"ignore": 65535, "scale": 0.001}),
        ("depth", MILLIMETRES.astype(np.float32) / 1000, "depth", {}),
        ("depth", MILLIMETRES.astype(np.float32), "depth", {"scale": 0.001}),
        ("n", NORMALS.astype(np.float32), "normals", {}),
        ("n", ((NORMALS + 1) * 127.5).round().astype(np.uint8), "normals", {"encoding": "rgb"}),
    ],
)  # fmt: skip
def test_from_values(tmp_path, name, array, kind, options):
    path = tmp_path / "x.npy"
    np.save(path, array)
    guess = guess_from_files(name, survey_labels([path] * 3))
    assert (guess.kind, guess.options) == (kind, options)
    assert all(guess.reasons)


def test_all_files_are_read_while_that_is_quick(tmp_path):
    """The largest class is in one file that is not among the first ones."""
    paths = []
    for i in range(200):
        array = np.zeros((4, 4), np.uint8)
        array[0, 0] = 5 if i == 151 else i % 3
        Image.fromarray(array).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    survey = survey_labels(paths)
    assert survey.files == 200
    assert guess_from_files("things", survey, kind="semseg").options["classes"] == 6


def test_a_given_kind_gets_its_options_only(tmp_path):
    np.save(tmp_path / "x.npy", BLOB * 255)
    survey = survey_labels([tmp_path / "x.npy"])
    guess = guess_from_files("x", survey, kind="semseg")
    assert (guess.kind, guess.options) == ("semseg", {"classes": 2, "values": [0, 255]})
    assert guess_from_files("x", survey, kind="edges").options == {"positive": 255}


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (((NORMALS + 1) * 127.5).round().astype(np.uint8), {"encoding": "rgb"}),
        (NORMALS.astype(np.float32) * 1.3, {}),
    ],
)
def test_given_normals_are_bytes_or_vectors_of_any_length(tmp_path, array, options):
    np.save(tmp_path / "x.npy", array)
    guess = guess_from_files(
        "n", survey_labels([tmp_path / "x.npy"], kind="normals"), kind="normals"
    )
    assert (guess.kind, guess.options) == ("normals", options)
    stored = Normals(**guess.options).encode(array)
    np.testing.assert_allclose(stored, NORMALS, atol=0.01)
    np.save(tmp_path / "x.npy", CLASSES)
    with pytest.raises(DataError, match=r"shape \(H, W, 3\), found \(8, 9\)"):
        survey_labels([tmp_path / "x.npy"], kind="normals")


@pytest.mark.parametrize(
    ("array", "threshold"),
    [
        (CLASSES, 1),
        (SOFT // 4, 32),
        (SOFT.astype(np.uint16) * 257, 32768),
        (SOFT / np.float32(255), 0.5),
        (SOFT / np.float32(10), 12.75),
    ],
)
def test_degrees_of_any_range_are_cut_within_it(tmp_path, array, threshold):
    np.save(tmp_path / "x.npy", array)
    guess = guess_from_files("x", survey_labels([tmp_path / "x.npy"]), kind="saliency")
    assert guess.options == {"threshold": pytest.approx(threshold)}


def test_labels_of_no_known_kind_are_refused(tmp_path):
    colours = RNG.integers(0, 255, (8, 9, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="3 channels with the colours"):
        survey_labels([tmp_path / "x.png"])
    np.save(tmp_path / "x.npy", np.full((4, 4), 255, np.uint8))
    with pytest.raises(DataError, match="found 255 alone in 1 file"):
        guess_from_files("x", survey_labels([tmp_path / "x.npy"]))


COLOURS = ["red", "green", "blue"] * 5


@pytest.mark.parametrize(
    ("columns", "kind", "options"),
    [
        ({"c": COLOURS}, "classification", {"classes": ["blue", "green", "red"]}),
        ({"c": [*COLOURS, "", ""]}, "classification", {"classes": ["blue", "green", "red"]}),
        ({"digit": ["2", "10", "1"] * 9}, "classification", {"classes": ["1", "2", "10"]}),
        ({"on": ["0", "1"] * 9}, "classification", {"classes": ["0", "1"]}),
        ({"age": [str(i) for i in range(90)]}, "regression", {}),
        ({"age": ["1.5", "2.5"] * 40}, "regression", {}),
        ({"a": ["0", "1"], "b": ["1", ""]}, "attributes", {"names": ["a", "b"]}),
        ({"a": ["-1", "1"], "b": ["1", "1"]}, "attributes", {"names": ["a", "b"], "negative": -1}),
        ({"a": ["True", "False"], "b": ["True", ""]}, "attributes", {"names": ["a", "b"]}),
        ({"c": [*COLOURS, "NA"]}, "classification",
         {"classes": ["blue", "green", "red"], "ignore": "NA"}),
        ({"c": ["0", "1", "2", "nan"] * 9}, "classification",
         {"classes": ["0", "1", "2"], "ignore": "nan"}),
        ({"c": ["+", "-"] * 9}, "classification", {"classes": ["+", "-"]}),
        ({"c": ["1", "1.0", "02", "2"] * 9}, "classification", {"classes": ["1", "02"]}),
        ({"age": ["NaN", *map(str, range(90))]}, "regression", {}),
        ({"a": ["Yes", "No"], "b": ["No", ""]}, "attributes",
         {"names": ["a", "b"], "positive": "Yes", "negative": "No"}),
        ({"a": ["0.5", "1"], "b": ["1", "3"]}, "regression", {"names": ["a", "b"]}),
    ],
)  # fmt: skip
def test_from_columns(columns, kind, options):
    guess = guess_from_columns("x", columns)
    assert (guess.kind, guess.options) == (kind, options)
    assert all(guess.reasons)


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (["1", "0"], {}),
        (["y", "n", "255"], {"positive": "y", "negative": "n"}),
        (["m", "f"], {"positive": "m", "negative": "f"}),
        (["1", "2.0"], {"positive": "2", "negative": "1"}),
    ],
)
def test_a_given_kind_of_attributes_says_which_value_is_positive(cells, options):
    guess = guess_from_columns("x", {"a": cells}, kind="attributes")
    assert guess.options == {"names": ["a"], **options}
    labels = Attributes(**guess.options).encode(np.array(cells[:1]))
    assert labels.tolist() == [int(cells[0] == options.get("positive", "1"))]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["nose_x", "nose_y", "eye.x", "eye.y"], {"names": ["nose", "eye"]}),
        (["x_nose", "y_nose"], {"names": ["nose"]}),
        (["L_eye_x", "L_eye_y", "nose_x", "nose_y", "R_eye_x", "R_eye_y"],
         {"names": ["L_eye", "nose", "R_eye"], "flip_pairs": [["L_eye", "R_eye"]]}),
        (["rightEar_x", "rightEar_y", "leftEar_x", "leftEar_y"],
         {"names": ["rightEar", "leftEar"], "flip_pairs": [["rightEar", "leftEar"]]}),
        (["a_x", "a_y", "a_v", "b_x", "b_y", "b_visible"], {"names": ["a", "b"]}),
        (["c1", "c2", "c3", "c4", "c5", "c6"], {"names": ["c1", "c3", "c5"]}),
        (["x", "y", "x2", "y2"], {"count": 2}),
    ],
)  # fmt: skip
def test_columns_of_keypoints(names, options):
    guess = guess_from_columns("x", {name: ["1"] for name in names}, kind="keypoints")
    assert (guess.kind, guess.options) == ("keypoints", options)


@pytest.mark.parametrize(
    ("columns", "kind", "said"),
    [
        ({"a": ["x", "y"], "b": ["1", "2"]}, "", "found text in 'a'; make a task of each"),
        ({"note": [f"text {i}" for i in range(50)]}, "", "each name several times"),
        ({"c": ["red"] * 9}, "", "classes must be 2 to 1000, found 1 distinct values"),
        ({"a": ["1"], "b": ["1"], "c": ["2"]}, "keypoints", "two columns per point"),
        ({"a_y": ["1"], "a_x": ["1"]}, "keypoints", "x and then y of each point, found a_y,a_x;"),
        ({"ax": ["1"], "bx": ["1"], "ay": ["1"], "by": ["1"]}, "keypoints", "found ax,bx"),
        ({"a": ["x", "y", "z"]}, "attributes", "must have two values, as 1 and 0 or yes and no"),
        ({"price": [f"{i},5" for i in range(50)]}, "", "such as '0,5'; write numbers as 3.5"),
        ({"n": [f"1_00{i}" for i in range(50)]}, "", "such as '1_000'"),
    ],
)
def test_columns_of_no_kind_are_refused_with_the_cure(columns, kind, said):
    with pytest.raises(UsageError) as error:
        guess_from_columns("x", columns, kind=kind)
    assert said in str(error.value)


@pytest.mark.parametrize("cells", [["NA", *map(str, range(90))], ["NA", "?", *"abab"]])
def test_words_for_no_label_are_refused_where_a_task_cannot_have_them(cells):
    with pytest.raises(DataError, match=r"must have empty cells where .* 'NA'; empty these cells"):
        guess_from_columns("x", {"c": cells})


def test_places_in_shares_of_the_image_are_refused():
    with pytest.raises(DataError, match=r"must be pixels of the image, found 0\.25 to 1; multiply"):
        guess_from_columns(
            "p", {"x": ["0.25", "0.5", ""], "y": ["1", "0.75", ""]}, kind="keypoints"
        )
    guess_from_columns("p", {"x": ["0.25", "0.5"], "y": ["1", "2"]}, kind="keypoints")
    guess_from_columns("p", {"x": ["0", "1"], "y": ["1", "-1"]}, kind="keypoints")
