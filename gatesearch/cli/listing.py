"""`gatesearch studies` and `gatesearch methods`: list studies, methods and weightings."""

from gatesearch.cli.console import out, print_table

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


def methods() -> None:
    """List methods, which say how tasks share a network, and weightings, which balance tasks."""
    from gatesearch.methods import METHODS
    from gatesearch.training.weightings import WEIGHTINGS

    print_table(
        ["method", "paper", "year", "what it does", "what a search chooses"],
        [
            [name, m.paper, str(m.year), m.summary, " ".join(m.space) or "-"]
            for name, m in METHODS.items()
        ],
        numbers_from=5,
    )
    out.print()
    print_table(
        ["weighting", "paper", "year", "what it does", "a step takes more by"],
        [[name, w.paper, str(w.year), w.summary, w.cost] for name, w in WEIGHTINGS.items()],
        numbers_from=5,
    )
