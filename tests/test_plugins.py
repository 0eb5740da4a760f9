"""Plugins: what they may add, what is refused, and that workers and stores know them."""

import importlib
import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import gatesearch as gs
from gatesearch import plugins
from gatesearch.errors import UsageError, unknown
from gatesearch.models.heads import HEADS
from gatesearch.plugins import (
    Plugin,
    check_plugins,
    keep_plugins,
    load_again,
    load_plugins,
    loaded_plugins,
    origin_of,
    used_by,
)
from tests.end_to_end.conftest import CommandLine

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
HEIGHT = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
WIDE = """
    from gatesearch.models.heads import light
    def wide(inputs, channels, outputs):
        return light(inputs, 2 * channels, outputs)
    def register(registry):
        registry.add_head("wide", wide)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Undo what plugins add."""
    tables = [
        getattr(importlib.import_module(module), name) for module, name in plugins._TABLES.values()
    ]
    kept = [(table, dict(table)) for table in (*tables, plugins._loaded, plugins._origins)]
    modules = set(sys.modules)
    yield
    for table, content in kept:
        table.clear()
        table.update(content)
    for name in set(sys.modules) - modules:
        if name.startswith("gatesearch_plugin"):
            del sys.modules[name]


def write(path, text=WIDE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


def load(*given):
    load_plugins(given, installed=False)


def test_a_file(tmp_path):
    load(write(tmp_path / "mine.py"))
    assert list(HEADS)[-1] == "wide"
    assert HEADS["wide"](4, 8, 2).layers[1].in_channels == 16
    assert (origin_of("head", "wide"), origin_of("head", "light")) == ("mine", "gatesearch")
    (plugin,) = loaded_plugins()
    assert (plugin.name, plugin.place) == ("mine", str(tmp_path / "mine.py"))
    assert len(plugin.sha256) == 64
    assert "wide" in str(unknown("head", "wid", HEADS))
    load(str(tmp_path / "mine.py"))  # once is enough
    assert len(loaded_plugins()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_module(tmp_path, monkeypatch):
    write(tmp_path / "roofs" / "__init__.py", WIDE + "\n    __version__ = '1.5'")
    monkeypatch.syspath_prepend(tmp_path)
    load("roofs")
    assert loaded_plugins() == (Plugin("roofs", "roofs", "1.5"),)
    assert "wide" in HEADS


def test_an_installed_distribution(tmp_path, monkeypatch):
    write(tmp_path / "roofs.py")
    info = tmp_path / "roof_things-2.1.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: roof-things\nVersion: 2.1\n")
    write(info / "entry_points.txt", "[gatesearch.plugins]\nmy-roofs = roofs\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins()
    assert loaded_plugins() == (Plugin("my-roofs", "roofs", "2.1"),)
    load("roofs")  # named as well
    assert len(loaded_plugins()) == 1


SECOND = """
    def register(registry):
        registry.add_head("other", None)
        registry.add_head("wide", None)
"""
FAULTY = {
    "def register(:": r"SyntaxError: .* \(line 1\); mend it, or leave it out",
    "import os\nos.sep + 1": r"TypeError: .*\(line 2\)",
    "import sys\nsys.exit(3)": r"SystemExit: 3",
    "import no_such_module": r"ModuleNotFoundError: No module named 'no_such_module' \(line 1\)",
    "x = 1": r"AttributeError: .*register",
    "def register(registry):\n    registry.add_hed('a', 1)": r"AttributeError: .*add_hed",
    "def register(registry):\n    registry.add_head('a/b', 1)": r"name of a head .* found 'a/b'",
    "def register(registry):\n    registry.add_head('', 1)": r"name of a head .* found ''",
    "def register(registry):\n    registry.add_head(5, 1)": r"name of a head .* found 5",
    "def register(registry):\n    registry.add_method('mtl')": r"AttributeError: .*name",
    "def register(r):\n    r.add_head('x', 1)\n    raise ValueError('two\\nlines')": "two lines",
    "def register(r):\n    r.add_head('x', 1)\n    r.add_head('x', 2)": "already, from plugin mine",
    "def register(r):\n    r.add_head('x', 1)\n    r.add_head('light', 2)":
        r"adds the head 'light', which is there already, from gatesearch; rename one",
    "\0": "cannot be loaded",
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTY)
def test_one_that_fails_adds_nothing_and_is_told_in_a_line(tmp_path, text):
    heads = dict(HEADS)
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=FAULTY[text]) as error:
        load(str(path))
    assert re.match(rf"plugin mine \({re.escape(str(path))}\)", str(error.value))
    assert "\n" not in str(error.value)
    assert heads == HEADS
    assert loaded_plugins() == ()
    assert not any(name.startswith("gatesearch_plugin") for name in sys.modules)


def test_two_plugins_with_one_name_are_told_with_both_places(tmp_path):
    first, second = write(tmp_path / "a.py"), write(tmp_path / "b.py", SECOND)
    load(first)
    expected = rf"plugin b \({second}\) adds the head 'wide', .* from plugin a \({first}\)"
    with pytest.raises(UsageError, match=expected):
        load(second)
    assert "other" not in HEADS
    namesake = write(tmp_path / "c" / "a.py", "def register(registry): pass")
    with pytest.raises(UsageError, match=f"differ in their names, found a at {first} and at"):
        load(namesake)


@pytest.mark.parametrize("place", ["missing.py", "no.such.module", "folder.py", "huge.py"])
def test_what_is_no_plugin(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "huge.py").write_bytes(b"#" * (plugins._LARGEST_FILE + 1))
    with pytest.raises(UsageError, match=r"^plugin .*(cannot be read|No module named)"):
        load(place)


def test_a_worker_loads_the_same_or_nothing(tmp_path):
    path = write(tmp_path / "mine.py")
    load(path)
    (plugin,) = loaded_plugins()
    plugins._loaded.clear()
    del HEADS["wide"]
    load_again([plugin])
    assert "wide" in HEADS
    plugins._loaded.clear()
    del HEADS["wide"]
    write(tmp_path / "mine.py", WIDE + "\n    # changed")
    with pytest.raises(UsageError, match=r"mine\.py has changed since the run was begun"):
        load_again([plugin])
    assert "wide" not in HEADS


def test_a_store_notes_the_plugins_that_its_study_uses(tmp_path, monkeypatch):
    load(write(tmp_path / "mine.py"), write(tmp_path / "unused.py", "def register(r): pass"))
    study = gs.load_study("scenes", ["model.head=wide"])
    plain = gs.load_study("scenes")
    assert [plugin.name for plugin in used_by(study)] == ["mine"]
    assert used_by(plain) == ()
    store = tmp_path / "store"
    store.mkdir()
    assert keep_plugins(store, plain) == []
    assert list(store.iterdir()) == []
    assert keep_plugins(store, study) == keep_plugins(store, study) == []
    check_plugins(store)
    plugins._loaded.clear()
    plugins._origins.clear()
    del HEADS["wide"]
    with pytest.raises(UsageError, match=f"with the plugin mine .*: --plugin {tmp_path}/mine.py"):
        check_plugins(store)
    load(write(tmp_path / "mine.py", WIDE + "\n    # changed"))
    check_plugins(store)
    (warning,) = keep_plugins(store, study)
    assert re.search(r"the plugin mine \w{12} has changed .* is mine \w{12} now", warning)
    assert keep_plugins(store, study) == []
    for damage in ("", "{}", '{"plugins": []}', "[" * 10000):
        (store / "plugins.json").write_text(damage)
        with pytest.raises(UsageError, match=r"plugins\.json is damaged .*; move it away"):
            check_plugins(store)
    check_plugins(tmp_path / "no store")


STUDY = """
name = "roofs"
methods = ["stl", "mtl"]
report_frames = 1
[protocol]
name = "roofs"
size = [32, 32]
[tasks.roof]
kind = "height"
scale = 2.0
[tasks.mask]
kind = "semseg"
classes = 3
[data]
dataset = "pack"
path = "packed"
validation = 2
[model]
backbone = "resnet18"
width = 0.0625
output_stride = 32
head = "light"
head_channels = 8
[training]
epochs = 1
batch_size = 4
lr = 2e-3
memory_format = "nhwc"
precision = "fp32"
"""


@pytest.fixture
def cli(tmp_path, environment):
    return CommandLine(tmp_path, environment)


@pytest.mark.slow("whole run")
def test_the_plugin_of_the_page_from_pack_to_export(tmp_path, cli):
    plugin = write(tmp_path / "height.py", HEIGHT)
    write(tmp_path / "roofs.toml", STUDY)
    load(plugin)
    rng = np.random.default_rng(0)
    samples = [
        {
            "image": rng.integers(0, 256, (32, 32, 3), np.uint8),
            "roof": np.full((32, 32), i / 8), "mask": rng.integers(0, 3, (32, 32)),
        }
        for i in range(12)
    ]  # fmt: skip
    tasks = {
        "roof": {"kind": "height", "scale": 2.0},
        "mask": {"kind": "semseg", "classes": 3},
    }
    made = gs.pack(samples, tasks, to=tmp_path / "packed", test=4 / 12)
    assert made.array("train", "roof").max() == 2 * max(map(int, made.ids("train"))) / 8

    def run(*words):
        return cli("run", "--study", "roofs.toml", "--n-trials", 0, "--json", *words)

    without = run()
    assert without.code == 2
    assert "unknown kind of tasks.roof 'height'" in without.stderr
    assert not (tmp_path / "runs").exists()
    begun = run("--plugin", "height.py", "--workers", 2)
    assert begun.code == 0, begun.stderr
    metrics = json.loads(begun.stdout)["baselines"][0]["metrics"]
    assert 0 < metrics["roof"] < 5
    without = run()
    assert without.code == 2
    assert "made with the plugin height" in without.stderr
    assert f"--plugin {plugin}" in without.stderr
    assert len(without.stderr.splitlines()) == 1
    again = run("--plugin", "height.py", "--methods", "stl,mtl,cross_stitch")
    assert again.code == 0, again.stderr
    assert len(json.loads(again.stdout)["baselines"]) == 3
    result = next((tmp_path / "runs/roofs/baselines").glob("*/result.json")).read_text()
    assert json.loads(result)["result"]["environment"]["plugins"].startswith("height ")
    told = cli("report", "--study", "roofs")
    assert told.code == 0, told.stderr
    ship = ("export", "--study", "roofs", "--trial", "mtl", "--to", "net.safetensors")
    refused = cli(*ship)
    assert (refused.code, "--plugin" in refused.stderr) == (2, True)
    shipped = cli(*ship, "--plugin", "height.py")
    assert shipped.code == 0, shipped.stderr
    bench = ("bench", "--model", "net.safetensors", "--seconds", "0", "--runtime", "eager")
    timed = cli(*bench, "--plugin", "height.py")
    assert timed.code == 0, timed.stderr
    assert "kind of task 'height', which --plugin may" in cli(*bench).stderr


@pytest.mark.slow("whole run")
def test_a_method_of_a_plugin_in_two_workers(tmp_path, cli):
    write(
        tmp_path / "phases.py",
        """
        from tests.methods.two_phases import TWO_PHASES
        def register(registry):
            registry.add_method(TWO_PHASES)
        """,
    )
    study = ROOT / "tests" / "end_to_end" / "tiny.toml"
    done = cli(
        "run", "--study", study, "--n-trials", 2, "--tune", "two_phases", "--workers", 2,
        "--set", "training.epochs=3", "--methods", "stl,two_phases", "--json",
        "--plugin", "phases.py",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["trials"]["complete"] == 2
    listed = cli("methods", "--plugin", "phases.py").stdout
    row = next(line for line in listed.splitlines() if line.strip().startswith("two_phases"))
    assert row.rstrip().endswith("phases")
    assert "origin" in listed
    assert "origin" not in cli("methods").stdout


@pytest.mark.slow("processes")
def test_what_lies_in_a_folder_does_not_run(tmp_path, cli):
    for name in ("plugin.py", "gatesearch_plugin.py", "runs/scenes/plugin.py"):
        write(tmp_path / name, "open('was_run', 'w')\ndef register(registry): pass")
    (tmp_path / "runs/scenes/plugins.json").write_text("{}")
    cli("methods", fresh=True)
    done = cli("run", "--study", "scenes", "--n-trials", 0, fresh=True)
    assert done.code == 2
    assert "plugins.json is damaged" in done.stderr
    assert not (tmp_path / "was_run").exists()


@pytest.mark.slow("processes")
def test_a_broken_plugin_ends_commands_with_one_line_and_code_2(tmp_path, cli):
    write(tmp_path / "mine.py", "raise RuntimeError('sorry')")
    for command in (
        ["methods"], ["data", "info", "scenes"], ["flops", "--study", "scenes"],
        ["run", "--study", "scenes"],
    ):  # fmt: skip
        done = cli(*command, "--plugin", "mine.py")
        assert done.code == 2
        assert done.stderr.splitlines() == [
            f"gatesearch: error: plugin mine ({tmp_path}/mine.py) cannot be loaded: RuntimeError: "
            "sorry (line 1); mend it, or leave it out"
        ]
