"""What the report says of tasks of whole images, further figures and missing labels, by value."""

import dataclasses
import math

import numpy as np
import pytest

from gatesearch.drawing import palette
from gatesearch.errors import DataError
from gatesearch.report import (
    all_metrics,
    image_answers,
    predictions,
    provenance,
    style,
    summary_page,
    write_report,
)
from gatesearch.results import StudyRecord, TaskInfo
from gatesearch.store.predictions import read_predictions
from tests.report.synthetic import FACES, pages, record, with_details, words

CAT = TaskInfo(
    "pet", "accuracy", "%", True, "classification", "one_class", 3, ("cat", "dog", "emu")
)
FACE = TaskInfo(
    "face", "accuracy", "%", True, "attributes", "attributes",
    options={"count": 2, "names": ["Smiling", "Young"]},
)  # fmt: skip
AGE = TaskInfo("age", "MAE", "years", False, "regression", "numbers")
POSE = TaskInfo(
    "pose", "PCK@0.1", "%", True, "keypoints", "points", options={"count": 2, "names": ["l", "r"]}
)


def study_of(tmp_path, *tasks, frames=2, **arrays) -> StudyRecord:
    image = np.full((frames, 40, 60, 3), 90, np.uint8)
    stored = {key.replace("__", "."): np.array(values) for key, values in arrays.items()}
    np.savez(tmp_path / "p.npz", image=image, **stored)
    return StudyRecord("s", "f", {}, "p", "", tasks, predictions=tmp_path / "p.npz")


def lines_of(study, module=image_answers):
    """Text on the pages, row by row: (text, colour) from left to right."""
    found = []
    for figure in pages(module, study):
        rows: dict[float, list] = {}
        for text in figure.texts:
            rows.setdefault(round(text.get_position()[1], 3), []).append(text)
        for height in sorted(rows, reverse=True):
            row = sorted(rows[height], key=lambda text: text.get_position()[0])
            found.append([(text.get_text(), text.get_color()) for text in row])
    return found


def texts_of(study, module=image_answers):
    return [[text for text, _ in row] for row in lines_of(study, module)]


class TestAnswers:
    def test_classes_with_their_probability(self, tmp_path) -> None:
        study = study_of(
            tmp_path, CAT,
            truth__pet=np.array([[1], [-1]], np.int16),
            stl__pet=np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], np.float32),
            mtl__pet=np.array([[0.6, 0.3, 0.1], [np.nan] * 3], np.float32),
        )  # fmt: skip
        shown = lines_of(study)
        ink, alarm = style.INK, style.ALARM
        first = next(row for row in shown if ("pet", ink) in row)
        assert first[-6:] == [
            ("pet", ink), ("dog", ink), ("✓", ink), ("dog · 70 %", ink), ("✗", alarm),
            ("cat · 60 %", alarm),
        ]  # fmt: skip
        # Without a label there is nothing right or wrong.
        second = [row for row in shown if ("pet", ink) in row][1]
        assert [text for text, _ in second][-4:] == ["pet", "–", "cat · 50 %", "–"]

    def test_attributes_and_numbers(self, tmp_path) -> None:
        study = study_of(
            tmp_path, FACE, AGE,
            truth__face=np.array([[1, 0], [255, 1]], np.uint8),
            mtl__face=np.array([[0.93, 0.51], [0.2, 0.6]], np.float32),
            truth__age=np.array([[34.0], [np.nan]], np.float32),
            mtl__age=np.array([[31.5], [20.0]], np.float32),
        )  # fmt: skip
        rows = [row[-4:] for row in texts_of(study)]
        assert ["face · Smiling", "yes", "✓", "93 %"] in rows
        assert ["face · Young", "no", "✗", "51 %"] in rows
        assert ["face · Young", "yes", "✓", "60 %"] in rows
        assert ["face · Smiling", "–", "20 %"] in [row[-3:] for row in rows]
        assert ["age", "34 years", "31.5 (−2.5)"] in [row[-3:] for row in rows]
        assert ["age", "–", "20"] in [row[-3:] for row in rows]

    def test_of_many_rows_those_with_errors_remain_in_their_order(self, tmp_path) -> None:
        names = [f"n{i:03}" for i in range(100)]
        info = dataclasses.replace(FACE, options={"count": 100, "names": names})
        guesses = np.zeros((1, 100), np.float32)
        guesses[0, [60, 99]] = 1.0  # wrong
        study = study_of(
            tmp_path, info, frames=1, truth__face=np.zeros((1, 100), np.uint8), mtl__face=guesses
        )
        text = words(image_answers, study)
        kept = [line.removeprefix("face · ") for line in text.split("\n") if "face · " in line]
        assert kept == [*names[:46], "n060", "n099"]
        assert "Left out of each image: 52 rows, first those without errors." in text

    @pytest.mark.parametrize(
        "array", [np.zeros((2, 4), np.float32), np.zeros((2, 40, 60), np.float32)]
    )
    def test_what_is_no_answer_is_left_out_with_a_word(self, tmp_path, array) -> None:
        arrays = {"mtl__pet": array, "stl__pet": np.ones((2, 3), np.float32) / 3}
        study = study_of(tmp_path, CAT, **arrays)
        text = words(image_answers, study).replace("\n", " ")
        assert "Left out: predictions of pet cannot be drawn as one_class" in text
        write_report(study, folder=tmp_path / "out")

    def test_stores_without_such_tasks_have_no_such_section(self) -> None:
        assert list(image_answers.sections(record(trials=0))) == []


class TestPoints:
    def test_they_are_drawn_over_the_image(self, tmp_path) -> None:
        # x = -0.5 of 60 columns is between 14 and 15, y = 0 of 40 rows between 19 and 20.
        places = np.array([[-0.5, 0.0, 1.0, 0.5, 0.5, 1.0], [np.nan] * 6], np.float32)
        study = study_of(tmp_path, POSE, truth__pose=places, mtl__pose=places)
        (figure,) = pages(predictions, study)
        pictures = [image.get_array() for image in figure.axes[0].images]
        assert len(pictures) == 6  # two frames of image, truth and network
        for picture in (pictures[2], pictures[4]):
            assert tuple(picture[20, 15]) == tuple(palette()[0])
            assert tuple(picture[30, 45]) == tuple(palette()[1])
            assert tuple(picture[5, 5]) == (90, 90, 90)
        assert (pictures[0] == 90).all()
        assert (pictures[3] == 90).all()  # no point has a place there
        text = [line.get_text() for line in figure.texts]
        assert {"l", "r"} <= set(text)
        assert list(image_answers.sections(study)) == []

    def test_others_than_points_are_left_out_with_a_word(self, tmp_path) -> None:
        study = study_of(tmp_path, POSE, mtl__pose=np.zeros((2, 5), np.float32))
        assert "Left out: pose: predictions of pose cannot be" in words(predictions, study)


class TestFile:
    def test_numbers_per_image_are_read(self, tmp_path) -> None:
        study_of(tmp_path, AGE, mtl__age=np.ones((2, 7), np.float32))
        assert read_predictions(tmp_path / "p.npz")["mtl.age"].shape == (2, 7)

    @pytest.mark.parametrize("shape", [(3, 7), (2,), (2, 1, 7)])
    def test_numbers_of_other_images_are_refused(self, tmp_path, shape) -> None:
        study_of(tmp_path, AGE, mtl__age=np.ones(shape, np.float32))
        with pytest.raises(DataError, match=r"mtl\.age must cover \(2, 40, 60\) frames, rows"):
            read_predictions(tmp_path / "p.npz")


class TestAllMetrics:
    def study(self, **figures):
        study = record(tasks=("depth",), trials=0, methods=("stl", "mtl"), seeds=(0, 1))
        baselines = tuple(
            dataclasses.replace(
                result,
                metrics={"test": {"depth": value}, "validation": {"depth": value}},
                details={"test": {"depth": {"abs rel": value / 10, **figures}}},
            )
            for result, value in zip(study.baselines, (1.0, 3.0, 0.5, 0.7), strict=True)
        )
        return dataclasses.replace(study, baselines=baselines)

    def test_means_of_seeds_and_the_ends(self) -> None:
        rows = texts_of(self.study(lost=math.nan), all_metrics)
        first = next(row for row in rows if row[0] == "depth · RMSE, m ↓")
        assert [float(cell) for cell in first[1:]] == [2.0, 0.6, 0.6, 2.0]
        further = next(row for row in rows if row[0] == "abs rel")
        assert [float(cell) for cell in further[1:]] == [0.2, 0.06, 0.06, 0.2]
        assert ["lost", "–", "–", "–", "–"] in rows

    def test_the_best_of_the_metric_that_ranks_is_bold(self) -> None:
        (figure,) = pages(all_metrics, self.study())
        bold = [t.get_text() for t in figure.texts if t.get_weight() == "bold"]
        assert sum(text.startswith("0.6") for text in bold) == 1
        assert not any(text.startswith("2.0") or text.startswith("0.2") for text in bold)

    def test_stores_of_earlier_versions_have_no_such_section(self) -> None:
        assert list(all_metrics.sections(record())) == []

    def test_every_class_of_every_network_is_there(self) -> None:
        study = record(tasks=("semseg",), trials=40, failed=(), weightings=("uniform", "dwa"))
        names = tuple(f"class {i}" for i in range(40))
        infos = (dataclasses.replace(study.tasks[0], class_names=names),)
        study = with_details(dataclasses.replace(study, tasks=infos))
        sections = list(all_metrics.sections(study))
        assert len(sections) > 1  # more networks than columns
        text = words(all_metrics, study).split("\n")
        assert all(text.count(f"IoU {name}") == len(sections) for name in names)
        result = study.baselines[0]
        value = style.number(result.details["test"]["semseg"]["IoU class 7"], 2)
        row = next(row for row in texts_of(study, all_metrics) if row[0] == "IoU class 7")
        assert row[1] == value


class TestLabels:
    def study(self, tasks=("semseg", "depth"), **labelled):
        study = record(tasks=tasks, trials=2, failed=())
        return dataclasses.replace(study, data={**study.data, "labelled": labelled})

    def test_counts_of_each_task_and_part(self) -> None:
        study = self.study(
            train={"semseg": 715, "depth": 100}, validation={"semseg": 80, "depth": 7},
            test={"semseg": 654, "depth": 9},
        )  # fmt: skip
        text = " ".join(words(provenance, study).split())
        assert "Labelled frames depth train 100/715, validation 7/80, test 9/654" in text
        assert "1 other task all" in text
        caption = " ".join(words(summary_page, study).split())
        told = "depth (train 100 of 715, validation 7 of 80, test 9 of 654)"
        assert f"Labels of some frames only: {told}." in caption

    def test_many_tasks_are_counted(self) -> None:
        parts = {"train": 715, "validation": 80, "test": 654}
        some = {part: dict.fromkeys(FACES, n - 1) for part, n in parts.items()}
        caption = " ".join(words(summary_page, self.study(FACES, **some)).split())
        assert "and 37 more tasks, see Provenance." in caption

    def test_nothing_is_said_where_all_frames_have_labels(self) -> None:
        assert "Labelled frames" not in words(provenance, record(trials=0))
        assert "Labels of some" not in words(summary_page, record(trials=0))
