"""`gatesearch new`: a study from a user's own files, which runs as it is written."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatesearch.study import load_study
from tests.datasets.folder.toys import mask, photo


@pytest.fixture
def own(cli, tmp_path: Path):
    """The command line in a folder of twenty photos, masks of classes and of a region, a table."""
    for name in ("photos", "masks", "fg", "depth"):
        (tmp_path / name).mkdir()
    lines = ["image;colour;age;tall;glasses;x;y"]
    for i in range(20):
        photo(48, 64, seed=i).save(tmp_path / f"photos/p{i // 4}_{i}.jpg")
        mask(48, 64, seed=i).save(tmp_path / f"masks/p{i // 4}_{i}.png")
        region = np.zeros((48, 64), np.uint8)
        region[10:30, 10:30] = 255
        Image.fromarray(region).save(tmp_path / f"fg/p{i // 4}_{i}.png")
        deep = np.full((48, 64), 1500 + i, np.uint16)
        Image.fromarray(deep).save(tmp_path / f"depth/p{i // 4}_{i}.png")
        cells = ("red", "green")[i % 2], f"{20 + i * 1.5:g}".replace(".", ","), i % 2, i % 3 // 2
        lines.append(f"p{i // 4}_{i}.jpg;{';'.join(map(str, cells))};{i};{i + 1}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return cli


MASKS = ("--images", "photos/*.jpg", "--label", "clothes=masks/{id}.png")
DENSE = (*MASKS, "--label", "fg=fg/{id}.png", "--label", "depth=depth/{id}.png")


def test_it_says_what_it_guessed_and_why_and_writes_a_study(own) -> None:
    done = own("new", "parts", *DENSE, "--json")
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "20 match" in said["images"]
    assert "48x64: that of most images; all have this shape" in said["size"]
    assert "semseg, classes = 3: 3 whole numbers in 20 files" in said["clothes"]
    assert "saliency, positive = 255" in said["fg"]
    assert "depth, scale = 0.001" in said["depth"]
    assert "millimetres" in said["depth"]
    assert "14 train, 2 validation, 4 test" in said["split"]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["study"] == "parts.toml"
    assert set(printed["guesses"]) == {"images", "size", "clothes", "fg", "depth", "split"}
    text = Path("parts.toml").read_text()
    assert text.splitlines()[0] == "# gatesearch run --study parts.toml --n-trials 6"
    study = load_study("parts.toml")
    assert study.protocol.size == (48, 64)
    assert study.tasks["clothes"].kind_options["classes"] == 3
    assert study.tasks["depth"].further == {"scale": 0.001}
    assert study.data.further["images"] == "photos/*.jpg"
    assert study.training.batch_size <= 14
    assert own("data", "check", "parts.toml").returncode == 0
    assert own("flops", "--study", "parts.toml", "--method", "mtl").returncode == 0


def test_a_file_is_never_overwritten(own) -> None:
    Path("parts.toml").write_text("mine")
    done = own("new", "parts", *MASKS)
    assert done.returncode == 2
    assert "parts.toml is there already and is not overwritten" in done.stderr
    assert Path("parts.toml").read_text() == "mine"
    Path("loop.toml").symlink_to("nowhere.toml")
    assert own("new", "parts", *MASKS, "--to", "loop.toml").returncode == 2
    assert not Path("nowhere.toml").exists()


def test_every_guess_can_be_changed_in_the_file(own) -> None:
    own("new", "parts", *MASKS)
    path = Path("parts.toml")
    text = path.read_text()
    for old, new in [
        ('kind = "semseg"', 'kind = "saliency"'), ("classes = 3", "threshold = 1"),
        ("size = [48, 64]", "size = [24, 24]"), ('fit = "stretch"', 'fit = "crop"'),
        ("validation = 0.1, test = 0.2", "validation = 0.25, test = 0.25"),
        ("split_seed = 0", "split_seed = 3"),
    ]:  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    done = own("data", "prepare", "parts.toml")
    assert done.returncode == 0, done.stderr
    assert "10 train + 5 test + 5 validation frames, 24x24" in done.stdout


def test_a_study_in_another_folder_finds_the_files(own) -> None:
    Path("t.txt").write_text("p0_1\np0_2")
    done = own("new", "parts", *MASKS, "--to", "studies/deep/parts.toml", "--test", "t.txt")
    assert done.returncode == 0, done.stderr
    raw = tomllib.loads(Path("studies/deep/parts.toml").read_text())
    assert raw["data"]["images"] == "../../photos/*.jpg"
    assert raw["data"]["test"] == "../../t.txt"
    assert raw["tasks"]["clothes"]["label"] == "../../masks/{id}.png"
    done = own("data", "check", "studies/deep/parts.toml")
    assert done.returncode == 0, done.stderr
    assert "2 test frames" in done.stdout


def test_kind_size_lists_and_groups_are_as_given(own) -> None:
    Path("t.txt").write_text("p0_0\np0_1\np0_2\np0_3")
    done = own("new", "parts", *MASKS, "--kind", "clothes=saliency", "--size", "32x40",
               "--test", "t.txt", "--group", "{group}_*")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kind was given" in done.stdout
    assert "the lists given, groups of '{group}_*' kept together" in done.stdout
    study = load_study("parts.toml")
    assert study.protocol.size == (32, 40)
    assert study.tasks["clothes"].kind == "saliency"
    assert study.data.further["group"] == "{group}_*"
    assert study.data.further["test"] == "t.txt"


def test_odd_names_are_written_as_toml_reads_them(own) -> None:
    Path('my "photos" #1').mkdir()
    for path in Path("photos").iterdir():
        path.rename(Path('my "photos" #1') / path.name)
    done = own("new", "my-study", "--images", 'my "photos" #1/*.jpg', "--label",
               "two words=masks/{id}.png", "--to", "-a b.toml")  # fmt: skip
    assert done.returncode == 0, done.stderr
    study = load_study("./-a b.toml")
    first = Path("-a b.toml").read_text().splitlines()[0]
    assert first == "# gatesearch run --study '-a b.toml' --n-trials 6"
    assert study.task_names == ("two words",)
    assert study.data.further["images"] == 'my "photos" #1/*.jpg'


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
def test_the_size_is_that_of_upright_images(own, name: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    for path in Path("photos").iterdir():
        photo(64, 48).save(path.with_suffix(Path(name).suffix), exif=exif)
    images = f"photos/*{Path(name).suffix}"
    done = own("new", "parts", "--images", images, "--label", "clothes=masks/{id}.png")
    assert done.returncode == 0, done.stderr
    assert load_study("parts.toml").protocol.size == (48, 64)
    assert own("data", "check", "parts.toml").returncode == 0


def test_frames_of_several_shapes_are_padded_and_large_ones_made_smaller(own) -> None:
    for i, path in enumerate(sorted(Path("photos").iterdir())):
        height, width = (300, 400) if i % 3 else (400, 300)
        photo(height, width).save(path)
        mask(height, width).save(f"masks/{path.stem}.png")
    done = own("new", "parts", *MASKS)
    assert "96x128: 300x400 of most images, made smaller for no GPU; shapes differ" in done.stdout
    study = load_study("parts.toml")
    assert study.data.further["fit"] == "pad"
    assert study.protocol.size == (96, 128)


def test_another_reading_of_the_classes_is_a_comment_that_can_be_used(own) -> None:
    own("new", "parts", *MASKS)
    text = Path("parts.toml").read_text()
    meant = "# if 0 marks pixels without a label, instead:\n"
    assert meant + "# classes = 2\n# ignore = 0\n# values = [1, 2]\n" in text
    text = text.replace("classes = 3\n", "", 1).replace("# classes = 2", "classes = 2")
    text = text.replace("# ignore = 0", "ignore = 0").replace("# values = [", "values = [")
    Path("parts.toml").write_text(text)
    assert load_study("parts.toml").tasks["clothes"].further == {"ignore": 0, "values": [1, 2]}
    assert own("data", "check", "parts.toml").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--images", "photo/*.jpg", "--label", "a=masks/{id}.png"), 3, "must be matched by"),
        (("--images", "photos", "--label", "a=masks/{id}.png"), 2, "as 'photos/*.jpg'"),
        (("--images", "photos/*.jpg", "--label", "a=mask/{id}.png"), 3, "such as mask/p0_0.png"),
        (("--images", "photos/*.jpg", "--label", "a=table.csv:agee"), 3, "did you mean 'age'"),
        (("--images", "photos/*.jpg", "--label", "a=none.csv:age"), 3, "none.csv cannot be read"),
        (("--images", "photos/*.jpg", "--label", "masks/{id}.png"), 2, "--label takes TASK=..."),
        ((*MASKS, "--label", "clothes=fg/{id}.png"), 2, "found 'clothes' twice"),
        ((*MASKS, "--kind", "clothes=classification"), 2, "columns of a table, as 'table.csv:age'"),
        ((*MASKS, "--kind", "cloth=semseg"), 2, "did you mean 'clothes'"),
        ((*MASKS, "--kind", "clothes=semsge"), 2, "did you mean 'semseg'"),
        ((*MASKS, "--size", "48"), 2, "as 96x128; found '48'"),
        ((*MASKS, "--size", "0x10"), 2, "as 96x128; found '0x10'"),
        ((*MASKS, "--to", "parts.txt"), 2, "must end in .toml"),
        ((*MASKS, "--size", "99999x9"), 2, "protocol.size"),
        (("--images", "photos/*.jpg", "--label", "a/b=masks/{id}.png"), 2, "a task's name must"),
        (("--images", "photos/*.jpg", "--label", "image=masks/{id}.png"), 2, "'image'"),
    ],
)
def test_wrong_use_is_one_clear_screen_and_writes_nothing(own, arguments, code, said) -> None:
    before = sorted(Path().rglob("*"))
    done = own("new", "parts", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(Path().rglob("*")) == before


def test_faults_of_the_listing_are_told(own) -> None:
    mask().save("masks/nobody.png")
    done = own("new", "parts", *MASKS)
    assert done.returncode == 0
    assert "labels with no image (1)" in done.stderr
    assert "nobody" in done.stderr


def test_columns_of_a_table(own) -> None:
    done = own("new", "people", "--images", "photos/*.jpg", "--label", "colour=table.csv:colour",
               "--label", "age=table.csv:age", "--label", "looks=table.csv:tall,glasses",
               "--label", "spot=table.csv:x,y", "--kind", "spot=keypoints")  # fmt: skip
    assert done.returncode == 0, done.stderr
    study = load_study("people.toml")
    kinds = {name: spec.kind for name, spec in study.tasks.items()}
    assert kinds == {"colour": "classification", "age": "regression", "looks": "attributes",
                     "spot": "keypoints"}  # fmt: skip
    assert study.tasks["colour"].class_names == ("green", "red")
    assert own("data", "check", "people.toml").returncode == 0


def test_paths_in_a_column_are_looked_at(own) -> None:
    Path("m.csv").write_text("id,mask\n" + "".join(
        f"p{i // 4}_{i},depth/p{i // 4}_{i}.png\n" for i in range(20)))  # fmt: skip
    done = own("new", "rooms", "--images", "photos/*.jpg", "--label", "deep=m.csv:mask",
               "--kind", "deep=depth")  # fmt: skip
    assert done.returncode == 0, done.stderr
    study = load_study("rooms.toml")
    assert study.tasks["deep"].further == {"scale": 0.001}
    assert study.model.output_stride == 8
    assert own("data", "check", "rooms.toml").returncode == 0


def test_points_have_maps_and_are_mirrored_only_where_sides_are_known(own) -> None:
    lines = Path("table.csv").read_text().replace(";x;y", ";left_x;left_y").splitlines()
    Path("t.csv").write_text("\n".join(
        [f"{lines[0]};right_x;right_y", *(f"{line};3;4" for line in lines[1:])]))  # fmt: skip
    for name, columns, flip in (("a", "left_x,left_y", False),
                                ("b", "left_x,left_y,right_x,right_y", True)):  # fmt: skip
        done = own("new", name, "--images", "photos/*.jpg", "--label", f"spot=t.csv:{columns}",
                   "--kind", "spot=keypoints")  # fmt: skip
        assert done.returncode == 0, done.stderr
        study = load_study(f"{name}.toml")
        assert study.model.output_stride == 8
        assert study.training.augment.flip is flip
        assert own("data", "check", f"{name}.toml").returncode == 0
