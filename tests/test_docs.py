"""The documents: the site builds without a warning, and its reference holds what the code has."""

import html
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import gatesearch
from docs.generate.names import kinds, methods, weightings
from docs.generate.study_keys import keys, kind_of_value, study_keys
from docs.generate.text import attributes_of, table
from gatesearch.cli import app
from gatesearch.methods.interrogate.options import InterroGateOptions
from gatesearch.study.schema import TrainingSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BESIDE_THE_SITE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/sample/README.md")


def build(folder: Path, *, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(folder)]
    quiet = {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | quiet
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The whole site; a broken link, anchor or docstring makes the build fail."""
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stderr
    return folder


def text_of(page: Path) -> str:
    """The words of a page as a reader sees them."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow("builds the site")
def test_the_site_has_every_command_option_and_public_name(site) -> None:
    commands = text_of(site / "reference" / "commands" / "index.html")
    root = get_command(app)
    groups = [(name, item) for name, item in root.commands.items()]
    groups += [(f"data {name}", item) for name, item in root.commands["data"].commands.items()]
    for name, command in groups:
        if not hasattr(command, "commands"):
            assert f"gatesearch {name}" in commands
            for option in command.params:
                if option.param_type_name == "option":
                    assert option.opts[0] in commands, (name, option.opts)
    python = text_of(site / "reference" / "python" / "index.html")
    for name in gatesearch.__all__:
        if name != "__version__":
            assert f"gatesearch.{name}" in python
            if inspect.isfunction(getattr(gatesearch, name)):
                assert re.search(rf"^{name}\(", python, re.MULTILINE), name
    assert "130" in commands.partition("Exit codes")[2]
    assert ">>> pareto_front(" in python  # an example, not a quotation


@pytest.mark.slow("builds the site")
def test_nothing_of_the_site_comes_from_elsewhere(site) -> None:
    """No font, script, style or picture is fetched when a page is read."""
    fetched = re.compile(r"<(?:script|img|link)[^>]* (?:src|href)=\"?(https?://[^\" >]+)")
    for page in site.rglob("*.html"):
        assert fetched.findall(page.read_text(encoding="utf-8")) == [], page
    assert not list(site.rglob("*.py"))
    assert "Taken from the code when" not in "".join(
        text_of(page) for page in (site / "reference").rglob("*.html")
    )


@pytest.mark.slow("builds the site")
@pytest.mark.parametrize("link", ["glossary.md#no-such-word", "no-such-page.md"])
def test_a_broken_link_ends_the_build(link, tmp_path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# A\n\n[b]({link})\n")
    (docs / "glossary.md").write_text("# B\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = re.search(r"^validation:\n(?: .*\n)+", settings, re.MULTILINE)
    assert validation is not None
    assert "\nstrict: true\n" in settings
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: a\nstrict: true\n{validation[0]}", encoding="utf-8")
    built = build(tmp_path / "site", config=config)
    assert built.returncode == 1
    assert link in built.stderr


@pytest.mark.parametrize("page", BESIDE_THE_SITE)
def test_links_of_pages_beside_the_site_lead_to_files(page) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", text)
    assert links
    assert [x for x in links if not ((ROOT / page).parent / x).exists()] == []


def test_paths_of_documents_in_code_and_studies_exist() -> None:
    files = [f for d in ("gatesearch", "benchmarks", "tests") for f in (ROOT / d).rglob("*.py")]
    files += (ROOT / "studies").glob("*.toml")
    for file in files:
        for path in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file(), (file, path)


def test_the_readme_is_one_screen_and_holds_the_test_command_once() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    (command,) = [x for x in lines if re.fullmatch(r".* && \.venv/bin/python -m pytest.*", x)]
    assert '-e ".[dev]"' in command
    assert any(x.endswith("gatesearch run --study scenes --n-trials 6") for x in lines)


def test_keys_of_a_study_have_type_bounds_default_and_meaning() -> None:
    rows = keys(TrainingSpec).splitlines()
    assert (
        "| `epochs` | whole number, 1 to 10⁶ | required | Passes over the training part. The "
        in ("\n".join(rows))
    )
    assert "| `momentum` | number ≥ 0 and < 1 | `0.9` | Momentum of `sgd`. |" in rows
    assert "| `augment.flip` | `true` or `false` | `true` | Mirror left to right with " in (
        "\n".join(rows)
    )
    assert '| `precision` | `auto`, `fp32`, `bf16` | `"auto"` |' in "\n".join(rows)
    page = study_keys()
    assert "| `augment` | [table](#trainingaugment) | as in its table | Augmentation of " in page
    assert "## `[training.augment]`" in page
    assert "| `tasks` | name → [table](#tasksname) | required |" in page
    assert "## `[tasks.NAME]`" in page
    assert "A name in the list of [kinds of task](names.md#kinds-of-task)." in page


def test_values_are_told_in_words() -> None:
    pair = {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]}
    assert kind_of_value(pair, {}) == "list of 2: number"
    optional = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    assert kind_of_value(optional, {}) == "whole number ≥ 1"
    assert kind_of_value({"$ref": "#/$defs/A"}, {"A": {"type": "boolean"}}) == "`true` or `false`"


def test_names_have_their_options_metrics_and_ranges() -> None:
    assert "| `cagrad` | Liu et al., NeurIPS | 2021 |" in weightings()
    assert "`c = 0.4`" in weightings()
    assert "| `lambda_s` | 0.01 to 10, log-uniform | above 0 |" in methods()
    assert "| `tau` | 0 to 1, one for each task | 0 to 1 |" in methods()
    assert "- Metric: RMSE, m; lower is better." in kinds()
    meanings = attributes_of(InterroGateOptions)
    assert set(meanings) == set(InterroGateOptions.model_fields)
    assert meanings["initial"] == (
        "Initial probability σ(α) that a task computes a channel in its own stream."
    )


def test_pipes_and_line_ends_stay_in_their_cell() -> None:
    assert table(["a"], [["x | y\n`p|q`"]]).splitlines()[2] == r"| x \| y `p|q` |"


def commands_of(page: Path) -> list[list[str]]:
    """The command lines of gatesearch in a page's code blocks, without comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("gatesearch ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_documents_are_ones(page) -> None:
    for words in commands_of(page):
        command = get_command(app)
        for word in words[1:]:
            if not hasattr(command, "commands"):
                break
            command = command.commands[word]
        options = {name for item in command.params for name in item.opts}
        taken = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert taken <= options, words
        needed = {item.opts[0] for item in command.params if item.required}
        assert {name for name in needed if name.startswith("--")} <= taken, words


def test_commands_are_found_in_documents() -> None:
    found = commands_of(ROOT / "docs" / "how-to" / "balance-tasks.md")
    assert found[0][:4] == ["gatesearch", "run", "--study", "nyud-small"]
    assert "--weightings" in found[0]
    assert len([page for page in PAGES if commands_of(page)]) >= 6
