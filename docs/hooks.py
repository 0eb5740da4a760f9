"""What mkdocs calls while it builds the site (`hooks` in mkdocs.yml).

Pages hold lines `> Taken from the code when the site is built: NAME`; each is replaced by what the
code says at that moment, so that no fact is written twice. Pages that lie beside docs/, such as
CONTRIBUTING.md, become pages of the site, and links to them are turned accordingly.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generate import commands, names, study_keys
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

GENERATED: dict[str, Callable[[], str]] = {
    "backbones": names.backbones,
    "commands": commands.commands,
    "datasets": names.datasets,
    "estimators": names.estimators,
    "exit codes": commands.exit_codes,
    "extras": names.extras,
    "formats": names.formats,
    "heads": names.heads,
    "kinds of task": names.kinds,
    "methods": names.methods,
    "public names": lambda: _public_names(),
    "studies": names.studies,
    "study keys": study_keys.study_keys,
    "weightings": names.weightings,
}

# Files beside docs/ that the site shows, by their path in the repository.
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "reports/sample/README.md")
# Files that those pages show or link to.
SHOWN = (
    "reports/sample/front.png",
    "reports/sample/nyud-small.pdf",
    "reports/sample/sharing/nyud-small.pdf",
)

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)((?:#[^)\s]*)?(?=\)))")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that lie beside docs/."""
    for path in (*BESIDE, *SHOWN):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links, and put what the code says in place of the lines that ask for it."""
    here = page.file.src_uri
    home = here if here in BESIDE else f"docs/{here}"

    def turned(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), link[1]))
        target = path.removeprefix("docs/")
        if home == f"docs/{here}" and target != path:
            return link[0]  # from a page in docs/ to another one
        return posixpath.relpath(target, posixpath.dirname(here) or ".") + link[2]

    return re.sub(
        r"^> Taken from the code when the site is built: (.*)$",
        lambda line: GENERATED[line[1]](),
        _LINK.sub(turned, markdown),
        flags=re.MULTILINE,
    )


def _public_names() -> str:
    """Ask mkdocstrings for every public name of the package, where it is defined."""
    import gatesearch

    source = Path(gatesearch.__file__).read_text(encoding="utf-8")
    asked = []
    for name in gatesearch.__all__:
        if name.startswith("__"):
            continue
        item = getattr(gatesearch, name)
        # A function may lie in a module of its own name, such as `extract`, which a path through
        # the packages would lead to. What is no function or class says nothing of its place.
        imported = re.search(rf"from ([\w.]+) import .*\b{name}\b", source)
        package = imported[1] if imported else "gatesearch"
        place = (
            f"{item.__module__}.{item.__qualname__}"
            if hasattr(item, "__qualname__")
            else f"{package}.{name}"
        )
        asked.append(
            f"::: {place}\n    options:\n      heading: gatesearch.{name}\n      toc_label: {name}"
        )
    return "\n\n".join(asked)
