"""`gatesearch data info|prepare|check` of a user's own files, and what bad files get."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatesearch.datasets import open_pack
from gatesearch.tasks.labels import IGNORE
from tests.datasets.folder.toys import make_folder, mask, photo
from tests.datasets.test_image_files import large_png


@pytest.fixture
def own(cli, tmp_path: Path):
    """The command line in a folder of ten photos with masks."""
    make_folder(tmp_path)
    return cli


def change(old: str, new: str) -> None:
    path = Path("own.toml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def refused(done, *said: str, code: int = 3) -> str:
    """One screen of plain words on standard error, the exit code, and nothing written."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 45
    assert not Path("data").exists()
    assert not Path("runs").exists()
    for text in said:
        assert text in done.stderr
    return done.stderr


def test_whole_files_are_prepared_as_they_are(own) -> None:
    done = own("data", "check", "own.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert "own: 6 train, 2 validation, 2 test frames of photos/*.png" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {"faults": [], "packs": {}}
    assert own("data", "prepare", "own.toml").returncode == 0
    (folder,) = Path("data").iterdir()
    assert folder.name.startswith("own-")
    pack = open_pack(folder)
    assert {split: pack.frames(split) for split in pack.splits} == {
        "train": 6, "validation": 2, "test": 2}  # fmt: skip
    ids = [frame for split in pack.splits for frame in pack.ids(split)]
    assert sorted(ids) == [f"f{i}" for i in range(10)]
    for split in pack.splits:
        for index, frame in enumerate(pack.ids(split)):
            seed = int(frame[1:])
            np.testing.assert_array_equal(pack.array(split, "image")[index], photo(seed=seed))
            np.testing.assert_array_equal(pack.array(split, "things")[index], mask(seed=seed))
    assert "things (semseg): masks/{id}.png: labels of 6 train, 2 validation, 2 test" in (
        own("data", "info", "own.toml").stdout)  # fmt: skip
    assert own("data", "check", "own.toml").stdout.splitlines()[-1].startswith("whole: data/own-")


def test_all_faulty_files_are_told_at_once(own) -> None:
    Path("photos/f0.png").write_bytes(b"")
    photo(14, 16).save("photos/f1.png")
    Path("masks/f2.png").unlink()
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save("masks/f3.png")
    mask().save("masks/nobody.png")
    Image.fromarray(np.zeros((12, 16), np.uint16)).save("photos/f4.png")
    mask().convert("RGB").point([0, 9, 200] * 256).save("masks/f5.png")
    photo().save("photos/f6.png.PNG")
    for command in (("data", "check"), ("data", "prepare"), ("run", "--study")):
        text = refused(
            own(*command, "own.toml"),
            "own has 6 faults:",
            "empty file (1): get the file again",
            "photos/f0.png: must hold an image, found 0 bytes",
            "masks/f1.png: must be as large as its image, 14 x 16, found 12 x 16",
            "masks/f3.png: values must be 0 to 2, or 255 where there is no label, found 7 (192",
            "labels with no image (1)",
            "no image has the id nobody",
            "photos/f4.png: must have 8 bits per channel, found 16-bit grey",
            "images with no label (2)",
            "f2, f6.png",
        )
        assert "masks/f5.png" in text
    printed = json.loads(own("data", "check", "own.toml", "--json").stdout.splitlines()[-1])
    assert {fault["kind"] for fault in printed["faults"] if not fault["is_warning"]} == {
        "labels with no image", "empty file", "wrong size", "bad value",
        "image of more than 8 bits", "label in colours"}  # fmt: skip


def test_hundreds_of_faults_fill_one_screen(own) -> None:
    make_folder(Path(), count=300)
    for i in range(300):
        Path(f"masks/f{i}.png").write_bytes(b"no image")
    text = refused(own("data", "check", "own.toml"), "own has 300 faults:", "and 268 more")
    assert len(text.splitlines()) <= 40


def spoil(name: str, image: Image.Image, **options: object) -> None:
    image.save(name, **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def coloured() -> Image.Image:
    array = np.zeros((12, 16, 3), np.uint8)
    array[:, :4] = (255, 0, 0)
    return Image.fromarray(array)


def transparent() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(100)
    return image


BAD = {
    "no masks": (
        lambda: change("masks/{id}", "mask/{id}"),
        ["task without labels", "found none for 10 images such as 'f0'"],
    ),
    "no photos": (
        lambda: change("photos/*.png", "photo/*.png"),
        ["nothing matches", "data.images = 'photo/*.png'"],
    ),
    "16-bit photo": (
        lambda: spoil("photos/f1.png", Image.fromarray(np.zeros((12, 16), np.uint16))),
        ["found 16-bit grey", "scale it to 0..255"],
    ),
    "float photo": (
        lambda: spoil("photos/f1.png", Image.fromarray(np.zeros((12, 16), np.float32)),
                      format="TIFF"),
        ["found floats"],
    ),
    "transparent photo": (
        lambda: spoil("photos/f1.png", transparent()),
        ["no transparent pixels"],
    ),
    "mask in colours": (
        lambda: spoil("masks/f1.png", coloured()),
        ["3 channels with the colours (0, 0, 0), (255, 0, 0)", "number of its class"],
    ),
    "lossy mask": (
        lambda: spoil("masks/f1.png", mask(), format="JPEG"),
        ["stored without loss", "found JPEG"],
    ),
    "16-bit mask of too many classes": (
        lambda: spoil("masks/f1.png", Image.fromarray(np.full((12, 16), 999, np.uint16))),
        ["found 999 (192 pixels)", "correct the file, or the task's classes"],
    ),
    "mask of the photo before it was turned": (
        lambda: spoil("photos/f1.png", photo(), exif=exif(6)),
        ["must be as large as its image, 16 x 12, found 12 x 16",
         "which is the size of f1.png before its EXIF orientation turns it"],
    ),
    "id twice": (
        lambda: spoil("photos/f1.PNG", photo()),
        ["id twice", "found photos/f1.PNG and photos/f1.png"],
    ),
    "huge photo": (
        lambda: Path("photos/f1.png").write_bytes(large_png(9000, 9000)),
        ["must have at most 67 million pixels, found 9000 x 9000"],
    ),
    "folder named as a photo": (
        lambda: (Path("photos/f1.png").unlink(), Path("photos/f1.png").mkdir()),
        ["must be a regular file, found a folder"],
    ),
    "pipe": (
        lambda: (Path("masks/f1.png").unlink(), os.mkfifo("masks/f1.png")),
        ["must be a regular file, found a named pipe"],
    ),
    "frames of differing sizes": (
        lambda: (change('images =', 'fit = "none"\nimages ='),
                 [(spoil(f"photos/f{i}.png", photo(20, 30)), spoil(f"masks/f{i}.png",
                   mask(20, 30))) for i in range(3)]),
        ["frame of another size (3)", "photos/f", "and 2 more: must have the protocol's size "
         "12 x 16, found 20 x 30"],
    ),
    "unknown id in a list": (
        lambda: (change("images =", 'test = "t.txt"\nimages ='), Path("t.txt").write_text("f1\nq")),
        ["t.txt: must name ids or paths of images, found 'q' (line 2)"],
    ),
    "id in two lists": (
        lambda: (change("images =", 'test = "t.txt"\ntrain = "r.txt"\nimages ='),
                 Path("t.txt").write_text("f1\nf2"), Path("r.txt").write_text("f3\nf2\nf4")),
        ["id in two parts", "f2: found in train and test"],
    ),
    "empty list": (
        lambda: (change("images =", 'test = "t.txt"\nimages ='), Path("t.txt").write_text("\n")),
        ["empty part", "every part must have frames, found train 8, validation 2, test 0"],
    ),
    "missing list": (
        lambda: change("images =", 'test = "t.txt"\nimages ='),
        ["t.txt cannot be read: No such file or directory"],
    ),
    "a part without labels": (
        lambda: (change("[data]", '[tasks.more]\nkind = "saliency"\nlabel = "m/{id}.png"\n[data]'),
                 Path("m").mkdir(), spoil("m/f1.png", Image.new("L", (16, 12)))),
        ["part without labels", "tasks.more: every part must have labels of every task, found"],
    ),
    "an uneven table": (
        lambda: (change("images =", 'table = "t.csv"\nimages ='),
                 Path("t.csv").write_text("id,split\nf1,train\nf2\n")),
        ["t.csv, line 3, must have 2 cells as its first line has, found 1"],
    ),
    "an unknown part": (
        lambda: (change("images =", 'table = "t.csv"\nimages ='),
                 Path("t.csv").write_text("id,split\nf1,train\nf2,tset\n")),
        ["t.csv, line 3: split must be train, validation or test, found 'tset'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_exits_3_with_the_cure_and_leaves_nothing(own, name: str) -> None:
    spoil_files, said = BAD[name]
    spoil_files()
    for command in (("data", "check"), ("data", "prepare"), ("run", "--n-trials", "0", "--study")):
        refused(own(*command, "own.toml"), *said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('label = "masks/{id}.png"', "", "tasks.things.label must say where the labels lie"),
        ("masks/{id}.png", "masks/*.png", "without *, as 'masks/{id}.png'"),
        ("photos/*.png", "photos", "with a wildcard, as 'photos/*.jpg'"),
        ("validation = 0.2, test = 0.2", "validation = 0.5, test = 0.5", "must leave frames"),
        ('images = "photos/*.png"', "", "images must name the files"),
        ("images =", 'fit = "squeeze"\nimages =', "fit"),
        ("images =", "imagse = 1\nimages =", "imagse"),
        ("images =", 'group = "*_x"\nimages =', "with {group}, as '{group}_*'"),
    ],
)
def test_a_wrong_definition_exits_2(own, old: str, new: str, said: str) -> None:
    change(old, new)
    refused(own("data", "check", "own.toml"), said, code=2)


def test_a_grey_photo_among_colour_is_told_and_used(own) -> None:
    photo().convert("L").save("photos/f1.png")
    done = own("data", "check", "own.toml")
    assert done.returncode == 0
    assert "grey images among colour (1): they become RGB" in done.stderr
    done = own("data", "prepare", "own.toml")
    assert "grey images among colour: data.images: f1" in done.stderr
    (folder,) = Path("data").iterdir()
    assert "grey images among colour: data.images: f1" in open_pack(folder).manifest.notes


@pytest.mark.parametrize("orientation", [2, 3])
def test_photos_that_are_stored_turned_are_told(own, orientation: int) -> None:
    """The size does not show whether their masks are turned too."""
    spoil("photos/f1.png", photo(), exif=exif(orientation))
    spoil("photos/f2.png", photo(), format="TIFF", exif=exif(orientation))  # Pillow turns these
    done = own("data", "check", "own.toml")
    assert done.returncode == 0, done.stderr
    assert "images turned by EXIF (1): they are turned upright; pixels" in done.stderr
    assert "    data.images: f1\n" in done.stderr
    assert "images turned by EXIF: data.images: f1;" in own("data", "prepare", "own.toml").stderr


def test_palettes_grey_turned_and_cmyk_files_are_read_rightly(own) -> None:
    palette = mask(seed=1).convert("P")
    palette.putdata(np.asarray(mask(seed=1)).ravel().tolist())
    palette.putpalette([9, 9, 9, 1, 2, 3, 200, 0, 7] + [0] * 759)
    palette.save("masks/f1.png")
    photo(16, 12, seed=2).save("photos/f2.png", exif=exif(6))
    Image.new("CMYK", (16, 12), (0, 255, 255, 0)).save("photos/f3.png", format="TIFF")
    assert own("data", "prepare", "own.toml").returncode == 0
    (folder,) = Path("data").iterdir()
    pack = open_pack(folder)
    at = {frame: (split, i) for split in pack.splits for i, frame in enumerate(pack.ids(split))}

    def stored(frame: str, field: str) -> np.ndarray:
        split, index = at[frame]
        return pack.array(split, field)[index]

    np.testing.assert_array_equal(stored("f1", "things"), mask(seed=1))
    np.testing.assert_array_equal(stored("f2", "image"), np.rot90(photo(16, 12, seed=2), -1))
    np.testing.assert_array_equal(stored("f3", "image"), np.full((12, 16, 3), (255, 0, 0)))


def test_a_frame_without_a_label_is_stored_as_unknown(own) -> None:
    change("[data]", '[tasks.more]\nkind = "saliency"\nlabel = "m/{id}.png"\n[data]')
    Path("m").mkdir()
    for i in range(6):
        Image.new("L", (16, 12), 1).save(f"m/f{i}.png")
    done = own("data", "prepare", "own.toml")
    assert done.returncode == 0, done.stderr
    assert "images without this label" in done.stderr
    (folder,) = Path("data").iterdir()
    pack = open_pack(folder)
    for split in pack.splits:
        labelled = pack.labelled(split, "more")
        assert labelled is not None
        assert labelled.tolist() == [int(frame[1:]) < 6 for frame in pack.ids(split)]
        assert labelled.any()
        assert (pack.array(split, "more")[~labelled] == IGNORE).all()


def test_a_pack_is_used_without_its_photos_and_changes_are_told(own) -> None:
    from gatesearch.datasets import DATASETS, ensure_pack
    from gatesearch.study import load_study

    own("data", "prepare", "own.toml")

    def warnings() -> list[str]:
        told: list[str] = []
        ensure_pack(DATASETS["folder"], load_study("own.toml"), data=Path("data"),
                    emit=lambda event: told.append(event.message))  # fmt: skip
        return told

    assert warnings() == []
    photo(seed=77).save("photos/f1.png")
    (told,) = warnings()
    assert "have changed since the pack was made" in told
    assert "gatesearch data prepare" in told
    own("data", "prepare", "own.toml")
    assert warnings() == []
    Path("photos").rename("photos-away")
    Path("masks").rename("masks-away")
    assert warnings() == []


def test_another_definition_is_another_pack(own) -> None:
    own("data", "prepare", "own.toml")
    change("size = [12, 16]", "size = [6, 8]")
    own("data", "prepare", "own.toml")
    own("data", "prepare", "own.toml")
    assert len(list(Path("data").iterdir())) == 2


def test_a_number_of_validation_frames_is_taken_from_the_training_part(own) -> None:
    change("fractions = { validation = 0.2, test = 0.2 }", "validation = 3")
    assert own("data", "prepare", "own.toml").returncode == 0
    (folder,) = Path("data").iterdir()
    pack = open_pack(folder)
    assert {split: pack.frames(split) for split in pack.splits} == {"train": 8, "test": 2}


def test_a_manifest_table_in_place_of_a_pattern(own) -> None:
    change('images = "photos/*.png"', 'table = "lists/t.csv"')
    Path("lists").mkdir()
    rows = [f"photos/f{i}.png;{'train' if i < 4 else 'val' if i < 6 else 'test'}" for i in range(9)]
    Path("lists/t.csv").write_bytes(("\ufeffimage;split\r\n" + "\r\n".join(rows)).encode())
    done = own("data", "prepare", "own.toml")
    assert done.returncode == 0, done.stderr
    (folder,) = Path("data").iterdir()
    pack = open_pack(folder)
    assert pack.ids("train") == ("f0", "f1", "f2", "f3")
    assert pack.ids("validation") == ("f4", "f5")
    assert pack.ids("test") == ("f6", "f7", "f8")


def test_lists_given_are_kept_and_groups_stay_together(own) -> None:
    for i in range(10):
        for folder in ("photos", "masks"):
            Path(f"{folder}/f{i}.png").rename(f"{folder}/p{i // 2}_{i}.png")
    change("images =", 'group = "{group}_*"\ntest = "t.txt"\nimages =')
    Path("t.txt").write_text("# whole patients\nphotos/p0_0.png\np0_1\np1_2.png\r\np1_3\n")
    assert own("data", "prepare", "own.toml").returncode == 0
    (folder,) = Path("data").iterdir()
    pack = open_pack(folder)
    assert pack.ids("test") == ("p0_0", "p0_1", "p1_2", "p1_3")
    groups = {split: {frame[:2] for frame in pack.ids(split)} for split in pack.splits}
    assert not groups["train"] & groups["validation"]
    assert len(pack.ids("train")) == 4


def test_a_source_or_a_size_beside_a_study_is_refused(own) -> None:
    refused(own("data", "prepare", "own.toml", "--source", "photos"), "leave it out", code=2)
    refused(own("data", "prepare", "own.toml", "--size", "4", "4"), "--size", code=2)
    refused(own("data", "prepare", "folder"), "name its file, as", code=2)
    assert "gatesearch new NAME" in own("data", "info", "folder").stdout


def test_a_table_may_leave_out_frames_that_have_labels(own) -> None:
    change("images =", 'table = "lists/t.csv"\nimages =')
    Path("lists").mkdir()
    Path("lists/t.csv").write_text("id\n" + "\n".join(f"../photos/f{i}.png" for i in range(5)))
    done = own("data", "info", "own.toml")
    assert "labels of 3 train, 1 validation, 1 test" in done.stdout
    assert "faults" not in done.stdout


def test_odd_names_are_read_and_told_without_steering_the_terminal(own) -> None:
    for i, name in enumerate(["a b", "-rf", "é", "$(x)", "a\nb\x1b[31m", "[q]", "{z}"]):
        photo(seed=i).save(f"photos/{name}.png")
        mask(seed=i).save(f"masks/{name}.png")
    assert own("data", "check", "own.toml").returncode == 0
    Path("masks/a\nb\x1b[31m.png").write_bytes(b"")
    text = refused(own("data", "check", "own.toml"), "masks/a\\nb\\x1b[31m.png: must hold an image")
    assert "\x1b[31m" not in text


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_for_three_parts(own, count: int) -> None:
    for i in range(count, 10):
        Path(f"photos/f{i}.png").unlink()
        Path(f"masks/f{i}.png").unlink()
    refused(own("data", "check", "own.toml"), "empty part", f"of {count} images")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b""), "must have a line of column names and rows below it"),
        (lambda path: path.mkdir(), "t.csv must be a regular file, found a folder"),
        (lambda path: os.mkfifo(path), "t.csv must be a regular file, found a named pipe"),
        (lambda path: path.symlink_to(path.name), "found a symbolic link"),
        (lambda path: path.write_text("id,x\n" + "f1,1\n" * 9), "f1' stands in an earlier line"),
        (lambda path: path.write_text("id,x\n" + "\n".join(f"F{i},1" for i in range(10))),
         "found none of 'F0' (line 2), 'F1' (line 3)"),
    ],
)  # fmt: skip
def test_hostile_tables(own, make, said: str) -> None:
    change("[data]", '[tasks.x]\nkind = "regression"\nlabel = "t.csv:x"\n[data]')
    make(Path("t.csv"))
    refused(own("data", "check", "own.toml"), said)


@pytest.mark.parametrize(("kind", "value"), [("semseg", 255), ("depth", 0), ("parts", 0)])
def test_a_part_whose_labels_all_say_that_there_is_none(own, kind: str, value: int) -> None:
    old = 'kind = "semseg"\nclasses = 3'
    classes = "" if kind == "depth" else "\nclasses = 3"
    change(old, f'kind = "{kind}"{classes}')
    change("images =", 'test = "t.txt"\nimages =')
    Path("t.txt").write_text("f1\nf2")
    for name in ("f1", "f2"):
        spoil(f"masks/{name}.png", Image.new("L", (16, 12), value))
    for verb in ("check", "prepare"):
        refused(own("data", verb, "own.toml"), "part without labels (1)",
                "tasks.things: every part must have labels of every task, found none in 2 of 2 "
                "files or rows of test")  # fmt: skip
    mask(seed=1).save("masks/f1.png")
    assert own("data", "check", "own.toml").returncode == 0


def test_values_of_a_table_outside_the_classes_are_told_by_frame(own) -> None:
    change("[data]", '[tasks.c]\nkind = "classification"\nclasses = ["red", "green"]\n'
           'label = "t.csv:c"\n'
           '[tasks.x]\nkind = "regression"\nlabel = "t.csv:x"\n[data]')  # fmt: skip
    rows = [f"f{i};{'blue' if i == 3 else 'red'};{'old' if i == 4 else i}" for i in range(10)]
    Path("t.csv").write_text("id;c;x\n" + "\n".join(rows))
    refused(
        own("data", "check", "own.toml"),
        "bad value (2)",
        "tasks.c of 'f3': must be one of red, green",
        "found 'blue'",
        "tasks.x of 'f4': must be a number, as 3.5, found 'old'",
    )


def test_two_sources_of_one_study(own) -> None:
    text = Path("own.toml").read_text()
    head, data = text.split("[data]\n")
    data, model = data.split("[model]")
    other = data.replace("photos", "more").replace("masks", "m")
    head += '[tasks.region]\nkind = "saliency"\nthreshold = 1\nlabel = "m/{id}.png"\n'
    Path("own.toml").write_text(
        f'{head}[[data]]\n{data}tasks = ["things"]\n[[data]]\n{other}tasks = ["region"]\n'
        f"[model]{model}"
    )
    for folder in ("more", "m"):
        Path(folder).mkdir()
    for i in range(5):
        photo(seed=i).save(f"more/g{i}.png")
        mask(seed=i).save(f"m/g{i}.png")
    done = own("data", "prepare", "own.toml")
    assert done.returncode == 0, done.stderr
    packs = [open_pack(path) for path in Path("data").iterdir()]
    assert {tuple(pack.label_fields) for pack in packs} == {("things",), ("region",)}
    Path("m/g1.png").write_bytes(b"")
    Path("masks/f1.png").write_bytes(b"")
    done = own("data", "check", "own.toml")
    assert done.returncode == 3
    assert "own has 2 faults" in done.stderr


def test_a_damaged_pack_is_told_with_the_cure_and_made_anew(own) -> None:
    from gatesearch.datasets import DATASETS, ensure_pack
    from gatesearch.study import load_study

    own("data", "prepare", "own.toml")
    (folder,) = Path("data").iterdir()
    whole = open_pack(folder).digest
    path = folder / "train" / "things.npy"
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
    done = own("data", "check", "own.toml")
    assert done.returncode == 3
    assert f"delete {folder} and run: gatesearch data prepare STUDY.toml --data data" in done.stderr
    path.write_bytes(data[:-9])
    told: list[str] = []
    pack = ensure_pack(DATASETS["folder"], load_study("own.toml"), data=Path("data"),
                       emit=lambda event: told.append(event.message))  # fmt: skip
    assert pack.digest == whole
    assert "making it anew" in told[0]
