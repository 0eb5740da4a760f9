"""`gatesearch new`: write a study from a user's own files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gatesearch.cli.console import out, print_json, warn
from gatesearch.cli.options import JsonOption, PluginOption, use_plugins
from gatesearch.errors import UsageError, shell_command

EXAMPLES = """Examples:

gatesearch new parts --images 'photos/*.jpg' --label clothes=masks/{id}.png

gatesearch new people --images 'photos/**/*.jpg' --label age=table.csv:age --kind age=regression

gatesearch new rooms --images 'rgb/*.png' --label depth=d/{id}.png --test test.txt --size 96x128"""

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")],
    images: Annotated[
        str,
        typer.Option(metavar="GLOB", help="The images, as 'photos/**/*.jpg'; put it in quotes."),
    ],
    label: Annotated[
        list[str],
        typer.Option(
            metavar="TASK=PLACE",
            help="A task and its labels: masks/{id}.png, table.csv:column, table.csv:a,b,c or "
            "table.csv:* for all columns. Repeatable.",
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The study's file. Default: NAME.toml.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=KIND", help="Kind of a task instead of a guess. Repeatable."),
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Height and width of the protocol, as 96x128.")
    ] = "",
    train: Annotated[
        str, typer.Option(metavar="LIST", help="File with an id or image path per line.")
    ] = "",
    validation: Annotated[
        str, typer.Option(metavar="LIST", help="The same for the validation part.")
    ] = "",
    test: Annotated[str, typer.Option(metavar="LIST", help="The same for the test part.")] = "",
    group: Annotated[
        str,
        typer.Option(
            metavar="PATTERN|FILE:COLUMN",
            help="Keep groups in one part: {group}_* of the ids, or a column of a table.",
        ),
    ] = "",
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Look at images and labels, guess their kinds, classes, size and split, and write a study.

    Every guess is printed with its reason, and is a line of the study's file that you can change.
    """
    use_plugins(plugin)
    to = Path(f"{name}.toml") if to is None else to
    labels = _pairs(label, "--label", "clothes=masks/{id}.png")
    kinds = _pairs(kind or [], "--kind", "clothes=semseg")
    _check(name, to, labels, kinds)
    wished = _size(size)

    from gatesearch.datasets.folder.draft import Wishes, draft_study
    from gatesearch.files import write_atomic

    def placed(text: str) -> str:
        """Spell a path relative to the folder of the study's file."""
        beside = os.path.relpath(os.curdir, to.parent)
        return text if not text or beside == "." or os.path.isabs(text) else f"{beside}/{text}"

    lists = {"train": train, "validation": validation, "test": test}
    wishes = Wishes(
        name=name,
        images=placed(images),
        labels={task: placed(place) for task, place in labels.items()},
        kinds=kinds,
        size=wished,
        lists={part: placed(path) for part, path in lists.items() if path},
        group=group if "{group}" in group else placed(group),
    )
    draft = draft_study(wishes, to.parent.absolute(), accelerated=_has_gpu())
    text = f"# {shell_command('gatesearch', *_run(to))}\n{draft.text}"
    _check_study(text, to)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(to, text.encode())
    _tell(draft.reasons)
    for fault in draft.faults:
        warn(f"{fault.kind} ({fault.count}): {fault.place}: {fault.found}; {fault.cure}")
    out.print(f"\nwrote {to}; next:", markup=False)
    for words in (("data", "check", str(to)), _run(to)):
        out.print(f"  {shell_command('gatesearch', *words)}", markup=False, soft_wrap=True)
    if json:
        print_json({"study": str(to), "guesses": dict(draft.reasons)})


def _run(to: Path) -> tuple[str, ...]:
    """Words of the command that runs a study."""
    return "run", "--study", str(to), "--n-trials", "6"


def _tell(reasons: Sequence[tuple[str, str]]) -> None:
    width = max(len(subject) for subject, _ in reasons)
    for subject, reason in reasons:
        out.print(f"{subject:<{width}}  {reason}", markup=False, soft_wrap=True)


def _pairs(items: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Split values of the form TASK=VALUE.

    Raises:
        UsageError: One has another form, or a task comes twice.
    """
    pairs: dict[str, str] = {}
    for item in items:
        task, separator, value = item.partition("=")
        if not separator or not task or not value:
            raise UsageError(f"{option} takes TASK=..., as {option} {example}; found '{item}'")
        if task in pairs:
            raise UsageError(f"{option} names each task once, found '{task}' twice")
        pairs[task] = value
    return pairs


def _check(name: str, to: Path, labels: dict[str, str], kinds: dict[str, str]) -> None:
    """Refuse to overwrite, and kinds of unknown tasks.

    Raises:
        UsageError: There is something in the file's place, or a name is unknown.
    """
    from gatesearch.errors import unknown

    if to.suffix != ".toml":
        raise UsageError(f"the file of a study must end in .toml, found '{to}'; name another --to")
    if os.path.lexists(to):
        raise UsageError(f"{to} is there already and is not overwritten; name another with --to")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            "a study's name must be of 1 to 100 letters (A to Z), digits, '.', '-' and '_', found "
            f"{name[:100]!r}; name another"
        )
    for task in kinds:
        if task not in labels:
            raise unknown("task of --kind", task, labels)


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = _SIZE.fullmatch(text)
    if match is None or not all(int(part) for part in match.groups()):
        raise UsageError(f"--size takes height and width in pixels, as 96x128; found '{text}'")
    return int(match[1]), int(match[2])


def _check_study(text: str, to: Path) -> None:
    """Refuse what would not load, such as a task's name with odd characters, before it is written.

    Raises:
        UsageError: The study is not valid.
    """
    import tomllib

    from gatesearch.study import Study
    from gatesearch.study.validation import validated
    from gatesearch.tasks import build_tasks

    raw = tomllib.loads(text)
    raw.pop("presets")
    study: Study = validated(Study, raw, where=str(to))
    build_tasks(study.tasks)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
