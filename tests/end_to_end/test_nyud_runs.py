"""From the frames of NYUD-v2 to a front."""

import subprocess
import sys

import pytest

from tests.nyud_layouts import packed, write_nyud_mt

pytestmark = pytest.mark.end_to_end

TINY_NETWORK = (
    *("--set", "model.width=0.0625", "--set", "model.head_channels=8"),
    *("--set", "model.output_stride=32", "--set", "training.epochs=1"),
)


def run_to_a_front(cli, *settings):
    done = cli("run", "--study", "nyud-small", "--n-trials", 1, "--json", *TINY_NETWORK, *settings)
    assert done.code == 0, done.stderr
    printed = done.json
    assert printed["trials"] == {"complete": 1, "failed": 0, "pruned": 0}
    assert [point["trial"] for point in printed["front"]] == [0]
    assert set(printed["front"][0]["metrics"]) == {"semseg", "depth", "normals"}
    assert (cli.folder / printed["report"]).read_bytes().startswith(b"%PDF-")
    return printed


def test_an_archive_in_the_public_layout_is_prepared(cli, tmp_path):
    archive = packed(write_nyud_mt(tmp_path / "NYUD_MT"), tmp_path / "NYUD_MT.tgz")
    prepared = cli("data", "prepare", "nyud", "--source", archive)
    assert prepared.code == 0, prepared.stderr
    assert prepared.stdout.startswith("data/nyud-40: 3 train + 2 test frames, 6x8, ")
    assert cli("data", "check", "nyud").stdout.startswith("whole: data/nyud-40: 3 train")


@pytest.mark.data
def test_real_frames_become_a_front(cli, real_frames):
    command = [sys.executable, str(real_frames / "unpack.py"), str(cli.folder / "source")]
    command += ["--layout", "nyud_mt", "--size", "96", "128", "--train", "12", "--val", "4"]
    subprocess.run(command, check=True)
    assert cli("data", "prepare", "nyud", "--source", "source").code == 0
    quick = (
        "--set",
        "preset=quick",
        "--set",
        "data.validation=4",
        "--set",
        "training.batch_size=4",
    )
    printed = run_to_a_front(cli, "--methods", "stl,mtl", *quick)
    assert [point["method"] for point in printed["baselines"]] == ["stl", "mtl"]
    # Metres indoors, and far from perfect after one epoch.
    assert all(0.3 < point["metrics"]["depth"] < 5 for point in printed["baselines"])
