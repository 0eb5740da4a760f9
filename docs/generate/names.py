"""The reference of everything that has a name: the package's tables, one section each."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from .study_keys import keys
from .text import prose, table, text_of


def methods() -> str:
    """List the methods with what a search chooses, and the options of each."""
    from gatesearch.methods import METHODS

    overview = table(
        ["method", "paper", "year", "what it does", "trained without a search"],
        [
            [f"`{name}`", m.paper, str(m.year), prose(m.summary), "yes" if m.baseline else "no"]
            for name, m in METHODS.items()
        ],
    )
    return "\n\n".join([overview, *(_method(name, m) for name, m in METHODS.items())])


def _method(name: str, method: Any) -> str:
    parts = [f"### {name}", f"Phases: {prose('; '.join(method.outline))}."]
    parts.append(f"Cost of its training, in multiples of a multi-task network's: {method.effort}.")
    if method.ours:
        parts.append(f"Ours: {prose(method.ours)}.")
    if method.options.model_fields:
        parts += [text_of(method.options), keys(method.options)]
    else:
        parts.append("It has no options of its own.")
    if method.space:
        rows = [[f"`{key}`", *_range(item)] for key, item in method.space.items()]
        parts.append(table(["`search.` key", "range or words", "a study may allow"], rows))
    return "\n\n".join(parts)


def _range(item: Any) -> tuple[str, str]:
    if hasattr(item, "values"):
        return ", ".join(f"`{v}`" for v in item.values), ", ".join(f"`{v}`" for v in item.legal)
    each = ", one for each task" if item.per_task else ""
    law = ", log-uniform" if item.log else ""
    low, high = item.legal
    legal = "any" if low == -high else f"{low:g} to {high:g}"
    if legal == "any" and item.log:
        legal = "above 0"
    return f"{item.low:g} to {item.high:g}{law}{each}", legal


def weightings() -> str:
    """List the weightings with options and costs."""
    from gatesearch.training.weightings import WEIGHTINGS

    return table(
        ["weighting", "paper", "year", "what it does", "looks at", "a step takes more by",
         "options `[balance.NAME]`"],
        [
            [f"`{name}`", w.paper, str(w.year), prose(w.summary),
             "gradients" if w.kind == "gradient" else "losses", prose(w.cost), _options(w.build)]
            for name, w in WEIGHTINGS.items()
        ],
    )  # fmt: skip


def _options(build: Callable[..., Any]) -> str:
    """List the keyword arguments of a builder behind its first, which is no option."""
    taken = list(inspect.signature(build).parameters.values())[1:]
    return ", ".join(
        f"`{item.name}`" if item.default is item.empty else f"`{item.name} = {item.default!r}`"
        for item in taken
        if item.default is not None  # which the search gives, not the study
    )


def kinds() -> str:
    """List the kinds of task: loss, metric, output, options."""
    from gatesearch.tasks import TASKS

    sections = []
    for name, kind in TASKS.items():
        task = _example(name)
        facts = []
        if task is not None:
            better = "higher" if task.higher_is_better else "lower"
            unit = f", {task.unit}" if task.unit else ""
            facts = [
                f"- Metric: {task.metric}{unit}; {better} is better.",
                f"- Exported files and `predict` give: {prose(task.output_meaning)}.",
                f"- Labels: {'per pixel' if task.storage.dense else 'per image'}, "
                f"drawn as `{task.drawing}`.",
                f"- Head, unless the study names one: `{task.head or 'model.head'}`.",
            ]
        parts = [f"### {name}", text_of(kind), "\n".join(facts)]
        if kind.model_fields:
            parts.append(keys(kind))
        sections.append("\n\n".join(parts))
    return "\n\n".join(sections)


def _example(kind: str) -> Any:
    """Build a task of a kind; some have no class, others need two."""
    from gatesearch.errors import GatesearchError
    from gatesearch.study import TaskSpec
    from gatesearch.tasks import build_tasks

    for classes in (1, 2):
        with suppress(GatesearchError, ValueError):
            return build_tasks({"example": TaskSpec(kind=kind, classes=classes)})["example"]
    return None


def backbones() -> str:
    """List the backbones with their size at full width."""
    from gatesearch.models.backbones import BACKBONES
    from gatesearch.models.encoder import Encoder

    rows = []
    for name, build in BACKBONES.items():
        encoder = Encoder(build(output_stride=8, width=1.0))
        millions = sum(p.numel() for p in encoder.parameters()) / 1e6
        rows.append([f"`{name}`", f"{millions:.2f}"])
    return table(["`model.backbone`", "parameters at full width (M)"], rows)


def heads() -> str:
    """List the heads."""
    from gatesearch.models.heads import HEADS

    return _described("`model.head`", HEADS)


def estimators() -> str:
    """List the estimators of gates."""
    from gatesearch.models.gates import ESTIMATORS

    return _described(
        "`interrogate.estimator`", {name: item.gate for name, item in ESTIMATORS.items()}
    )


def formats() -> str:
    """List the formats of `gatesearch export`."""
    from gatesearch.export.formats import FORMATS

    return _described("ending", {f".{name}": write for name, write in FORMATS.items()})


def datasets() -> str:
    """List the data sets with the keys of `[data]` that only they have."""
    from gatesearch.datasets import DATASETS

    overview = table(
        ["`data.dataset`", "what it is", "prepared by itself"],
        [
            [f"`{name}`", prose(dataset.summary), "yes" if dataset.automatic else "no"]
            for name, dataset in DATASETS.items()
        ],
    )
    options = [
        f"### {name}\n\n{text_of(dataset.options)}\n\n{keys(dataset.options)}"
        for name, dataset in DATASETS.items()
        if dataset.options.model_fields
    ]
    return "\n\n".join([overview, *options])


def studies() -> str:
    """List the built-in studies."""
    from gatesearch.study import builtin_studies, load_study

    loaded = [load_study(path) for path in builtin_studies().values()]
    return table(
        ["study", "tasks", "what it is"],
        [[f"`{s.name}`", ", ".join(s.task_names), prose(s.summary)] for s in loaded],
    )


def extras() -> str:
    """List the extras of the package with what each installs."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    listed = project["project"]["optional-dependencies"]
    return table(
        ["extra", "installs"],
        [[f"`gatesearch[{name}]`", ", ".join(f"`{item}`" for item in items)]
         for name, items in listed.items()],
    )  # fmt: skip


def _described(title: str, named: Mapping[str, Callable[..., Any]]) -> str:
    return table(
        [title, "what it is"],
        [[f"`{name}`", text_of(item).replace("\n\n", " ")] for name, item in named.items()],
    )
