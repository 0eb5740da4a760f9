"""`gatesearch studies` and `gatesearch methods`: list studies, methods and weightings."""

from gatesearch.cli.console import out, print_table
from gatesearch.cli.options import PluginOption, use_plugins

STUDIES_EXAMPLES = "Examples:\n\ngatesearch studies\n\ngatesearch run --study scenes --n-trials 6"
METHODS_EXAMPLES = (
    "Examples:\n\ngatesearch methods\n\ngatesearch run --study scenes --methods stl,mtl\n\n"
    "gatesearch run --study scenes --n-trials 0 --methods mtl --weightings uniform,pcgrad"
)


def studies() -> None:
    """List the built-in studies."""
    from gatesearch.study import builtin_studies, load_study

    builtin = [load_study(path) for path in builtin_studies().values()]
    print_table(
        ["study", "protocol", "tasks", "what it is"],
        [
            [
                study.name,
                study.protocol.name,
                " ".join(study.task_names),
                study.summary,
            ]
            for study in builtin
        ],
        numbers_from=4,
    )


def methods(plugin: PluginOption = None) -> None:
    """List methods, how each is trained, and weightings, which balance tasks.

    With plugins, a further column says which of them each comes from.
    """
    from gatesearch.methods import METHODS
    from gatesearch.plugins import loaded_plugins, origin_of
    from gatesearch.training.weightings import WEIGHTINGS

    use_plugins(plugin)
    header = ["origin"] if loaded_plugins() else []

    def origin(what: str, name: str) -> list[str]:
        return [origin_of(what, name)] if header else []

    print_table(
        ["method", "paper", "year", "what it does", "what a search chooses", *header],
        [
            [
                *(name, m.paper, str(m.year), m.summary, " ".join(m.space) or "-"),
                *origin("method", name),
            ]
            for name, m in METHODS.items()
        ],
        numbers_from=6,
    )
    out.print()
    print_table(
        ["method", "phases of its training", "effort", "what is ours"],
        [[name, "; ".join(m.outline), m.effort, m.ours or "-"] for name, m in METHODS.items()],
        numbers_from=4,
    )
    out.print("effort: cost of a training in multiples of a multi-task network's; T tasks\n")
    print_table(
        ["weighting", "paper", "year", "what it does", "a step takes more by", *header],
        [
            [*(name, w.paper, str(w.year), w.summary, w.cost), *origin("weighting", name)]
            for name, w in WEIGHTINGS.items()
        ],
        numbers_from=6,
    )
