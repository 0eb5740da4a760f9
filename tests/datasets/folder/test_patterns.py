"""Patterns of file names, and the ids that they give."""

import os

import pytest

from gatesearch.datasets.folder.patterns import find_files, image_pattern, label_pattern
from gatesearch.errors import UsageError


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("photos/*.jpg", {"a", "b.1", "-rf", "two words", "é"}),
        ("photos/**/*.jpg", {"a", "b.1", "-rf", "two words", "é", "deep/a", "deep/er/c"}),
        ("photos/*/*.jpg", {"deep/a"}),
        ("./photos//?.jpg", {"a", "é"}),
        ("photos/[ab]*.jpg", {"a", "b.1"}),
        ("photos/[!ab]*.jpg", {"-rf", "two words", "é"}),
        ("photos/*.{jpg,png}", {"a", "b.1", "-rf", "two words", "é", "p"}),
        ("photos/{id}.jpg", {"a", "b.1", "-rf", "two words", "é", "deep/a", "deep/er/c"}),
        ("**/er/*.jpg", {"photos/deep/er/c"}),
        ("photos/deep/{id}/c.jpg", {"er"}),
        ("nowhere/*.jpg", set()),
    ],
)
def test_ids_are_paths_below_the_fixed_folder(tmp_path, pattern, ids):
    make(tmp_path, *(f"photos/{name}" for name in (
        "a.jpg", "b.1.jpg", "-rf.jpg", "two words.jpg", "é.jpg", "deep/a.jpg", "deep/er/c.jpg",
        "p.png", ".hidden.jpg", "._a.jpg", ".trash/x.jpg", "notes.txt")))  # fmt: skip
    matches = find_files(image_pattern(pattern), tmp_path)
    assert set(matches.files) == ids
    assert not matches.twice
    assert list(matches.files) == sorted(matches.files)


def test_the_case_of_a_suffix_makes_no_difference_but_that_of_a_name_does(tmp_path):
    make(tmp_path, "photos/a.JPG", "photos/b.Jpg", "photos/C_x.jpg", "photos/c_x.jpg")
    assert set(find_files(image_pattern("photos/*.jpg"), tmp_path).files) == {
        "a", "b", "C_x", "c_x"}  # fmt: skip
    assert set(find_files(image_pattern("photos/c*.jpg"), tmp_path).files) == {"c_x"}


def test_one_id_for_several_files_is_told(tmp_path):
    make(tmp_path, "photos/a.jpg", "photos/a.JPG", "photos/b.jpg")
    matches = find_files(image_pattern("photos/*.jpg"), tmp_path)
    assert matches.twice == {"a": [tmp_path / "photos/a.JPG", tmp_path / "photos/a.jpg"]}
    assert set(matches.files) == {"a", "b"}


def test_names_written_in_other_forms_of_unicode_are_the_same_id(tmp_path):
    make(tmp_path, "photos/e\u0301.jpg", "masks/é.png")
    images = find_files(image_pattern("photos/*.jpg"), tmp_path).files
    labels = find_files(label_pattern("masks/{id}.png"), tmp_path).files
    assert set(images) == set(labels) == {"é"}


def test_names_with_line_breaks_and_brackets_are_names(tmp_path):
    make(tmp_path, "photos/a\nb.jpg", "photos/[c].jpg", "masks/[c]_m.png", "masks/a\nb_m.png")
    images = find_files(image_pattern("photos/*.jpg"), tmp_path).files
    labels = find_files(label_pattern("masks/{id}_m.png"), tmp_path).files
    assert set(images) == set(labels) == {"a\nb", "[c]"}


def test_names_that_are_no_text_are_told(tmp_path):
    (tmp_path / "photos").mkdir()
    with open(os.fsencode(tmp_path) + b"/photos/\xff.jpg", "wb"):
        pass
    matches = find_files(image_pattern("photos/*.jpg"), tmp_path)
    assert (matches.files, len(matches.unnameable)) == ({}, 1)


def test_loops_of_links_end_and_linked_folders_are_read_once(tmp_path):
    make(tmp_path, "elsewhere/x.jpg", "photos/sub/a.jpg")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/sub/up").symlink_to("..")
    (tmp_path / "photos/self").symlink_to("self")
    (tmp_path / "photos/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/out2").symlink_to(tmp_path / "elsewhere")
    matches = find_files(image_pattern("photos/**/*.jpg"), tmp_path)
    assert set(matches.files) == {"sub/a", "out/x"}


def test_a_folder_that_matches_is_matched_and_entered(tmp_path):
    make(tmp_path, "photos/x.jpg/y.jpg")
    assert set(find_files(image_pattern("photos/**/*.jpg"), tmp_path).files) == {"x", "x.jpg/y"}


def test_an_id_named_twice_is_the_same_in_both_places(tmp_path):
    make(tmp_path, "scenes/1/1_rgb.png", "scenes/1/2_rgb.png", "scenes/2/2_rgb.png")
    files = find_files(image_pattern("scenes/{id}/{id}_rgb.png"), tmp_path).files
    assert {i: path.name for i, path in files.items()} == {"1": "1_rgb.png", "2": "2_rgb.png"}


def test_an_absolute_pattern(tmp_path):
    make(tmp_path, "photos/a.jpg")
    files = find_files(image_pattern(f"{tmp_path}/photos/*.jpg"), tmp_path / "other").files
    assert files == {"a": tmp_path / "photos/a.jpg"}


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (image_pattern, "photos", "as 'photos/*.jpg'"),
        (image_pattern, "photos/a.jpg", "a pattern of many files, found 'photos/a.jpg'"),
        (image_pattern, "", "found ''"),
        (image_pattern, "photos/{name}.jpg", "found {name}"),
        (label_pattern, "masks/*.png", "without *, as 'masks/{id}.png'"),
        (label_pattern, "masks", "'table.csv:age'; found 'masks'"),
        (label_pattern, "masks/{id}/{view}.png", "found {view}"),
        (label_pattern, "", "found ''"),
    ],
)
def test_bad_patterns_are_refused_with_the_cure(read, text, said):
    with pytest.raises(UsageError) as error:
        read(text)
    assert said in str(error.value)
