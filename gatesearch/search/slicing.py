"""Cut a network out of a trained supernet of a store, for preferences and budgets of no trial."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from gatesearch.errors import UsageError
from gatesearch.events import Emit
from gatesearch.methods import (
    METHODS,
    NetworkSpec,
    TrainingRequest,
    check_study,
    method_of,
    start_of,
)
from gatesearch.methods.space import Range, space_of
from gatesearch.results import Result, StudyRecord
from gatesearch.search.setup import parse_budgets
from gatesearch.study import Study
from gatesearch.trials.context import open_context
from gatesearch.trials.kept_networks import copy_network, kept_network, network_state
from gatesearch.trials.trial import train_network

# Hyperparameter of methods whose supernets answer preferences.
PREFER = "prefer"
# Evenly spaced values that are tried of each other hyperparameter.
_VALUES = 5


def cut_slice(
    record: StudyRecord,
    name: str,
    *,
    budgets: Sequence[str],
    prefer: Mapping[str, float],
    store: Path,
    data: Path,
    folder: Path,
    emit: Emit,
) -> tuple[Result, nn.Module]:
    """Cut a network, as a trial would, and measure it on the validation part.

    It is trained by itself where trials are (`finetune`). The store is only read.

    The most preferred task gets the preference 1, the others in proportion. Of evenly spaced values
    of the other hyperparameters, it takes those of the dearest network within the budgets.

    Args:
        record: Contents of the store.
        name: A method with a supernet and the hyperparameter `prefer`.
        budgets: Upper bounds, in the forms that `parse_budget` reads.
        prefer: Task -> weight; 1 for tasks that are not named.
        store: The store's folder.
        data: Folder of packs.
        folder: Folder for the files of the network.
        emit: Receives events.

    Returns:
        (its figures, the plain network on the CPU).

    Raises:
        UsageError: The method has no such supernet, the store has none of it, or a budget is out
            of reach, or out of reach for these preferences.
    """
    method = method_of(name)
    if method.supernet is None or PREFER not in method.space:
        fitting = [n for n, m in METHODS.items() if m.supernet is not None and PREFER in m.space]
        raise UsageError(
            f"--slice takes a method with a supernet that answers preferences "
            f"({', '.join(fitting)}), found '{name}'"
        )
    definition = Study.from_definition(record.definition)
    study = check_study(definition.model_copy(update={"tune": (name,)}))
    bounds = parse_budgets(study, budgets)
    for trained in record.starts:
        spec = NetworkSpec(name, trained.seed, 0, budgets=bounds)
        start = start_of(spec, study)
        if start is not None and (start.method, start.part) == (trained.method, trained.part):
            break
    else:
        raise UsageError(
            f"--slice cuts a network out of the trained supernet of {name}, and this store has "
            f"none; train it with: gatesearch run --tune {name}"
        )
    copy_network(trained, start.folder(store), start.folder(folder))
    context = open_context(study, data=data, stored=trained.environment, emit=emit)
    request = TrainingRequest(spec, context, lambda: network_state(trained, out=folder), emit)
    supernet = method.supernet(request, bounds)
    tried = [(*supernet.cost(params), params) for params in _candidates(study, name, prefer)]
    within = [(macs, params) for macs, share, params in tried if share <= 1]
    if not within:
        raise UsageError(
            f"no network of {name} keeps to {', '.join(budgets)} under these preferences, of "
            f"{len(tried)} tried; raise the budget, or prefer less"
        )
    spec = replace(spec, params=max(within, key=lambda item: item[0])[1])
    result = train_network(spec, context, out=folder, start=trained, emit=emit)
    return replace(result, trial=None), kept_network(result, study, out=folder)


def _candidates(
    study: Study, name: str, prefer: Mapping[str, float]
) -> Iterator[dict[str, float | str]]:
    """Yield configurations with the given preferences, over values of the other parameters."""
    weights = {task: prefer.get(task, 1.0) for task in study.task_names}
    asked = {f"{PREFER}.{task}": w / max(weights.values()) for task, w in weights.items()}
    others = {
        key: [item.low + i / (_VALUES - 1) * (item.high - item.low) for i in range(_VALUES)]
        for key, item in space_of(method_of(name).space, study).items()
        if isinstance(item, Range) and key not in asked
    }
    for values in itertools.product(*others.values()):
        yield {**asked, **dict(zip(others, values, strict=True))}
