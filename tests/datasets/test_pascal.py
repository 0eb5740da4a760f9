"""PASCAL-Context: every label by value, all kinds of source, and what is refused."""

import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, check_pack, ensure_pack
from gatesearch.datasets.edges import laplacian_edges
from gatesearch.errors import DataError, UsageError
from tests.nyud_layouts import packed
from tests.pascal_tree import FOLDERS, IDS, annotation, raw_frame, save_mat, write_pascal

PASCAL = DATASETS["pascal"]
SIZE = (16, 16)


def prepare(data, source, *, size=SIZE, train=0, test=0):
    request = PackRequest(size, train, test)
    folder = PASCAL.prepare(folder=data, source=source, request=request, emit=lambda event: None)
    return check_pack(folder)


def stored(pack, name="2008_000001", split="train"):
    at = pack.ids(split).index(name)
    return {field: pack.array(split, field)[at] for field in pack.fields}


@pytest.mark.parametrize("shape", ["folder", "nested", "tar", "tgz", "zip"])
def test_every_kind_of_source_gives_the_same_pack(tmp_path, shape):
    folder = write_pascal(tmp_path / "outer" / "PASCAL_MT")
    source = {"folder": folder, "nested": tmp_path / "outer"}.get(shape)
    pack = prepare(tmp_path / "data", source or packed(folder, tmp_path / f"release.{shape}"))
    assert pack.digest == prepare(tmp_path / "plain", folder).digest
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pascal-context"]
    assert pack.ids("train") == IDS["train"]
    assert pack.ids("test") == IDS["val"]


def test_frames_of_all_sizes_become_512_by_512_by_default(tmp_path):
    pack = prepare(tmp_path / "data", write_pascal(tmp_path / "a"), size=None, train=1, test=1)
    assert pack.size == (512, 512)
    frame = stored(pack, IDS["train"][0])
    label = raw_frame(1, (16, 12))["semseg"]
    # Stretched by 32 and 512/12: every stored pixel has the label that covers its centre.
    rows = ((np.arange(512) + 0.5) * 16 / 512).astype(int)
    columns = ((np.arange(512) + 0.5) * 12 / 512).astype(int)
    np.testing.assert_array_equal(frame["semseg"], label[rows][:, columns])


def test_labels_by_value(tmp_path):
    frame = raw_frame(1, SIZE)
    root = write_pascal(tmp_path / "a", {"2008_000001": frame})
    got = stored(prepare(tmp_path / "data", root))
    np.testing.assert_array_equal(got["semseg"], frame["semseg"])  # 0..20 and 255 as they are
    np.testing.assert_array_equal(got["saliency"], frame["saliency"] >= 128)
    np.testing.assert_array_equal(got["edges"], laplacian_edges(frame["context"]))
    assert got["edges"].any()
    known = np.isin(frame["context"], (59, 284))  # car and person; aeroplanes and sky have none
    vectors = 2.0 * frame["normals"] / 255 - 1
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected = np.where(known[..., None] & (length > 0.1), vectors / length, 0)
    np.testing.assert_allclose(got["normals"].astype(float), expected, atol=1e-3)


def test_parts_of_all_persons_later_ones_before_earlier_ones(tmp_path):
    frame = raw_frame(1, SIZE)
    whole, rows = np.ones(SIZE, bool), np.arange(16)[:, None] + np.zeros(16, int)
    frame["objects"] = [
        (15, whole, {"hair": rows < 6, "neck": rows == 5, "lhand": rows == 8, "ruleg": rows == 10}),
        (13, whole, {"head": whole}),  # a horse, whose head is of no person
        (15, whole, {"lfoot": rows == 0}),
        (15, whole, {}),
    ]
    root = write_pascal(tmp_path / "a", {"2008_000001": frame})
    parts = stored(prepare(tmp_path / "data", root))["parts"]
    assert parts[:, 0].tolist() == [6, 1, 1, 1, 1, 2, 0, 0, 4, 0, 5, 0, 0, 0, 0, 0]
    assert (parts == parts[:, :1]).all()


def test_images_without_persons_have_no_labels_of_parts(tmp_path):
    pack = prepare(tmp_path / "data", write_pascal(tmp_path / "a"))
    assert (stored(pack, "2008_000002")["parts"] == 255).all()
    assert (stored(pack, "2008_000001")["parts"] != 255).all()
    assert pack.manifest.splits["train"].labelled["parts"] == 2
    assert pack.manifest.splits["test"].labelled["parts"] == 1
    assert pack.labelled("train", "parts").tolist() == [True, False, True]


def test_a_person_without_parts_is_no_label(tmp_path):
    frame = raw_frame(1, SIZE)
    frame["objects"] = [(15, np.ones(SIZE, bool), {})]
    root = write_pascal(tmp_path / "a", {"2008_000001": frame})
    assert (stored(prepare(tmp_path / "data", root))["parts"] == 255).all()


def test_classes_of_voc_come_before_those_of_context(tmp_path):
    frame = raw_frame(1, SIZE)
    root = write_pascal(tmp_path / "a", {"2008_000001": frame})
    other = Image.fromarray(np.full(SIZE, 3, np.uint8))
    other.save(root / "semseg" / "pascal-context" / "2008_000001.png")
    got = stored(prepare(tmp_path / "data", root))["semseg"]
    np.testing.assert_array_equal(got, frame["semseg"])


def test_labels_of_another_size_are_resized_and_told(tmp_path):
    frame = raw_frame(1, SIZE)
    frame["semseg"] = np.array([[1, 2], [3, 255]], np.uint8)
    root = write_pascal(tmp_path / "a", {"2008_000001": frame})
    pack = prepare(tmp_path / "data", root)
    got = stored(pack)["semseg"]
    np.testing.assert_array_equal(got, np.kron(frame["semseg"], np.ones((8, 8), np.uint8)))
    assert "train: semseg had another size than the image in 1 frames" in pack.manifest.notes
    assert "train: 3 of the 4998 official frames" in pack.manifest.notes


def test_a_study_reads_the_pack(tmp_path):
    prepare(tmp_path / "data", write_pascal(tmp_path / "a"))
    study = load_study("pascal")
    pack = ensure_pack(PASCAL, study, data=tmp_path / "data", emit=lambda event: None)
    assert set(study.tasks) == set(pack.label_fields)
    assert pack.fields["semseg"].class_names[15] == "person"
    assert pack.fields["parts"].class_names[1] == "head"


PLACES = {
    "image": "JPEGImages/2008_000001.jpg",
    "semseg": "semseg/VOC12/2008_000001.png",
    "normals": "normals_distill/2008_000001.png",
    "saliency": "sal_distill/2008_000001.png",
    "parts": "human_parts/2008_000001.mat",
    "context": "pascal-context/trainval/2008_000001.mat",
}
BOX = np.ones((16, 12), bool)  # as large as this image


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["missing", "cut", "empty", "named pipe", "folder", "device"])
def test_files_that_are_none_are_named(tmp_path, name, kind):
    root = write_pascal(tmp_path / "a")
    path = root / PLACES[name]
    data = path.read_bytes()
    path.unlink()
    if kind == "cut":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="2008_000001") as error:
        prepare(tmp_path / "data", root)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("*"))


def mat(name, **values):
    return lambda root: save_mat(root / PLACES[name], **values)


def png(name, array):
    return lambda root: Image.fromarray(np.asarray(array)).save(root / PLACES[name])


def lists(name, text):
    return lambda root: (root / "ImageSets/Context" / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (mat("context", Labels=BOX * 2.0), "must hold a LabelMap of shape"),
        (mat("context", LabelMap="text"), "must hold a LabelMap of shape"),
        (mat("context", LabelMap=np.zeros((2, 2, 2))), "must hold a LabelMap of shape"),
        (mat("context", LabelMap=BOX * -1.0), "whole numbers from 0"),
        (mat("context", LabelMap=BOX * 0.5), "whole numbers from 0"),
        (mat("context", LabelMap=BOX * np.nan), "whole numbers from 0"),
        (mat("context", LabelMap=np.ones((5, 5))), r"normals_distill.*\.png must be as large as"),
        (mat("parts", other=1.0), "must hold one structure anno with objects"),
        (mat("parts", anno=np.ones((3, 3))), "must hold one structure anno with objects"),
        (mat("parts", anno=annotation([(15, BOX, {"wing": BOX})])), "part of a person 'wing'"),
        (mat("parts", anno=annotation([(15, BOX, {"head": BOX, "neck": BOX[1:]})])), "one size"),
        (mat("parts", anno=annotation([(15, np.zeros((0, 0)), {"head": BOX})])), "every mask must"),
        (png("semseg", np.full((16, 12), 21, np.uint8)), r"0 to 20, or 255 .*found 21 \(192"),
        (png("semseg", np.zeros((16, 12, 3), np.uint8)), "must have one channel, found RGB"),
        (png("saliency", np.full((16, 12), 300, np.uint16)), "must hold 0..255, found 300"),
        (lists("train.txt", ""), r"train\.txt lists no frames"),
        (lists("train.txt", "2008_000001\n2008_000001"), "found 2008_000001 twice"),
        (lists("train.txt", "2009_000007"), "found 2009_000007 in both"),
        (lists("val.txt", "../../etc/passwd"), "letters and digits, found '../../etc/passwd'"),
        (lists("val.txt", "2009_000009"), r"missing .*JPEGImages/2009_000009\.jpg and 5 more"),
    ],
)  # fmt: skip
def test_a_bad_tree_is_named(tmp_path, damage, found):
    root = write_pascal(tmp_path / "a")
    damage(root)
    with pytest.raises(DataError, match=found) as error:
        prepare(tmp_path / "data", root)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("*"))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    which=st.integers(0, 100), start=st.integers(0, 400), skip=st.integers(0, 12),
    junk=st.binary(min_size=1, max_size=12),
)  # fmt: skip
def test_damage_of_any_kind_is_an_error_of_data(tmp_path, which, start, skip, junk):
    root = write_pascal(tmp_path / "a")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[which % len(files)]
    data = path.read_bytes()
    start = min(start, len(data) - 1)
    path.write_bytes(data[:start] + junk + data[start + skip :])
    with suppress(DataError):
        prepare(tmp_path / "data", root)
    assert {path.name for path in (tmp_path / "data").glob("*")} <= {"pascal-context"}


def test_sources_that_are_none(tmp_path):
    with pytest.raises(UsageError, match=r"pascal needs its frames: .*--source"):
        prepare(tmp_path, None)
    with pytest.raises(DataError, match="found nothing there"):
        prepare(tmp_path, tmp_path / "absent")
    (tmp_path / "other" / FOLDERS[1]).mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"no PASCAL_MT layout: .* found JPEGImages; see: gatesearch"
    ):
        prepare(tmp_path, tmp_path / "other")


@pytest.mark.data
def test_a_tree_of_real_images(tmp_path, real_frames):
    """Photographs of NYUD with their classes in place of those of PASCAL, in differing sizes."""
    import subprocess
    import sys

    command = [sys.executable, str(real_frames / "unpack.py"), str(tmp_path / "nyud")]
    command += ["--layout", "nyud_mt", "--size", "192", "256", "--train", "3", "--val", "2"]
    subprocess.run(command, check=True)
    names = [*IDS["train"], *IDS["val"]]
    frames = {}
    for name, path in zip(names, sorted((tmp_path / "nyud" / "images").iterdir()), strict=True):
        height, width = 192 - 8 * len(frames), 256 - 16 * len(frames)
        cut = np.s_[:height, :width]
        label = np.asarray(Image.open(tmp_path / "nyud" / "segmentation" / f"{path.stem}.png"))[cut]
        person = {"torso": label == 5, "head": label == 1}
        normals = np.load(tmp_path / "nyud" / "normals" / f"{path.stem}.npy")[cut]
        frames[name] = {
            "image": np.asarray(Image.open(path))[cut],
            "semseg": np.where(label == 0, 255, label % 21).astype(np.uint8),
            "context": label.astype(np.uint16) + 280,
            "normals": ((normals + 1) * 127.5).round().astype(np.uint8),
            "saliency": np.where(label == 5, 255, 0).astype(np.uint8),
            "objects": [(15, label > 0, person)] if label.size else [],
        }
    pack = prepare(tmp_path / "data", write_pascal(tmp_path / "a", frames), size=None)
    assert pack.size == (512, 512)
    got = stored(pack, names[0])
    assert 0.005 < got["edges"].mean() < 0.2
    assert 20 < got["image"].mean() < 235
    known = np.abs(got["normals"]).sum(-1) > 0
    lengths = np.linalg.norm(got["normals"][known].astype(float), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=4e-3)
    share = (frames[names[0]]["semseg"] == 255).mean()  # nothing is added at the borders
    assert abs((got["semseg"] == 255).mean() - share) < 0.01
