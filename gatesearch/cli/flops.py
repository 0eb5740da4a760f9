"""`gatesearch flops`: count the cost of a study's methods before any training."""

from typing import Annotated

import typer

from gatesearch.cli.console import err, print_json, print_table
from gatesearch.cli.options import (
    JsonOption,
    PluginOption,
    SetOption,
    StudyOption,
    TasksOption,
    names,
    settings,
    use_plugins,
)

EXAMPLES = """Examples:

gatesearch flops --study nyud

gatesearch flops --study pascal --method stl,mtl --json

gatesearch flops --study scenes --set model.width=1.0

gatesearch flops --study nyud --tasks depth"""


def flops(
    study: StudyOption,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="M", help="Method to count, repeatable. Default: those of the study."),
    ] = None,
    tasks: TasksOption = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Count what the network of each method costs for one image, before any training.

    FLOPs are 2 x multiply-adds of convolutions and matrix products, heads included.
    """
    from gatesearch.study import load_study

    use_plugins(plugin)
    definition = load_study(study, settings(set_))
    chosen = list(names(method, "--method")) if method else []

    from gatesearch.measures import shown_gflops
    from gatesearch.methods import check_study
    from gatesearch.pruning.subnetwork import known_tasks
    from gatesearch.trials.costs import costs, unpriced

    alone = known_tasks(names(tasks, "--tasks"), definition.tasks) if tasks else ()
    checked = check_study(definition)
    for name in [] if method else checked.methods:
        if reason := unpriced(checked, name, tasks=alone):
            err.print(f"left out: {reason}", style="yellow", markup=False)
        else:
            chosen.append(name)
    counted = costs(checked, chosen, tasks=alone)
    for name, cost in counted.items():
        for line in cost.disagreements:
            err.print(f"warning: {name}: {line}", style="yellow", markup=False)
        for operator, calls in cost.uncounted.items():
            err.print(
                f"warning: {name}: operator {operator}, called {calls} times, is not counted",
                style="yellow",
                markup=False,
            )
    if json:
        figures = {
            name: {
                "gflops": cost.gflops,
                "backbone_gflops": cost.backbone_gflops,
                "params_m": cost.params_m,
            }
            for name, cost in counted.items()
        }
        counts = {"study": definition.name, "convention": "2xMAC", "methods": figures}
        print_json(counts | ({"tasks": list(alone)} if alone else {}))
        return
    height, width = definition.protocol.size
    subject = ": ".join([definition.name, *([", ".join(alone)] if alone else [])])
    print_table(
        ["method", "GFLOPs", "backbone GFLOPs", "parameters (M)"],
        [
            [name, shown_gflops(c.gflops), shown_gflops(c.backbone_gflops), f"{c.params_m:,.3f}"]
            for name, c in counted.items()
        ],
        numbers_from=1,
        title=f"{subject}, one image of {height} x {width}, FLOPs = 2 x multiply-adds",
    )
