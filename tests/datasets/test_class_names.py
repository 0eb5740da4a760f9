"""Names of classes: stated by the data sets, in the order of the labels, and read back."""

from gatesearch.datasets import DATASETS
from gatesearch.results import TaskInfo
from gatesearch.search.setup import task_infos
from gatesearch.study import load_study


def test_every_list_has_a_name_per_class_and_none_twice():
    for dataset in DATASETS.values():
        for (_, classes), names in dataset.class_names.items():
            assert len(names) == classes
            assert len(set(names)) == classes


def test_names_at_known_labels():
    # Counted over 151 of NYUD's validation frames: where one list says `floor mat` (19), the other
    # says `floor` (4); `desk` (13) is `table` (9), `door` (7) is `wall` (11).
    forty = DATASETS["nyud"].class_names["semseg", 40]
    thirteen = DATASETS["nyud"].class_names["semseg", 13]
    assert [forty[i] for i in (0, 1, 3, 7, 13, 19, 21, 39)] == [
        "wall", "floor", "bed", "door", "desk", "floor mat", "ceiling", "other prop",
    ]  # fmt: skip
    assert [thirteen[i] for i in (0, 4, 9, 11, 12)] == ["bed", "floor", "table", "wall", "window"]


def test_a_study_describes_its_tasks_with_them():
    infos = {info.name: info for info in task_infos(load_study("scenes"))}
    assert infos["semseg"].class_names == (
        "floor", "ceiling", "wall", "picture", "table", "cabinet", "box", "ball",
    )  # fmt: skip
    assert infos["depth"].class_names == ()


def test_descriptions_are_read_from_json_with_names_and_without():
    info = TaskInfo("semseg", "mIoU", "%", True, "semseg", "classes", 2, ("wall", "floor"))
    stored = {**vars(info), "class_names": ["wall", "floor"]}
    assert TaskInfo.from_json(stored) == info
    del stored["class_names"]
    assert TaskInfo.from_json(stored).class_names == ()
