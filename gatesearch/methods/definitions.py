"""Read the parts of a study that concern methods: options, training, start and search space."""

from collections.abc import Callable, Mapping, Sequence

from gatesearch.errors import UsageError, unknown
from gatesearch.methods.base import Method, Options
from gatesearch.methods.space import (
    Choice,
    Range,
    check_first,
    check_first_names,
    space_of,
)
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts
from gatesearch.results import SINGLE_TASK
from gatesearch.study import MethodOptions, Study, TrainingSpec
from gatesearch.study.validation import validated


def options_of(study: Study, method: Method[Options]) -> Options:
    """Validate the options that a study gives a method, fill in the defaults and settle them.

    Raises:
        UsageError: An unknown option or a bad value.
    """
    written = study.options_of(method.name).own
    options: Options = validated(method.options, written, where=f"options.{method.name}")
    return options if method.settle is None else method.settle(study, options)


def training_of(study: Study, method: Method[Options]) -> TrainingSpec:
    """Return the training settings of a method's networks."""
    return study.training_of(method.name) if method.training is None else method.training(study)


def starts_from_single_task(study: Study, method: Method[Options]) -> bool:
    """Tell whether a method's networks start from the weights of the single-task networks."""
    if method.name == SINGLE_TASK:
        return False
    start = study.options_of(method.name).start or method.start
    return start == "stl" or study.model.init == "stl"


def single_task_start(
    spec: NetworkSpec, study: Study, method: Method[Options]
) -> NetworkSpec | None:
    """Specify the single-task networks of the same seed if the method starts from them, else None.

    Methods without a `start_of` of their own use this.
    """
    if not starts_from_single_task(study, method):
        return None
    return NetworkSpec(SINGLE_TASK, spec.seed, width=spec.width)


def at_width(study: Study, factor: float) -> Study:
    """Return the study with its backbone's channels times a factor."""
    if factor == 1:
        return study
    model = study.model.model_copy(update={"width": study.model.width * factor})
    return study.model_copy(update={"model": model})


def checked(
    study: Study,
    tuned: Mapping[str, Method[Options]],
    method_of: Callable[[str], Method[Options]],
    known: Mapping[str, Method[Options]],
) -> Study:
    """Check what a study says of methods, and drop options and ranges that are the default.

    Two definitions that mean the same then have the same fingerprint, however they are written.

    Args:
        study: The study as it was read.
        tuned: Methods whose hyperparameters are searched.
        method_of: Looks a method up by name, or raises `UsageError`.
        known: All methods.

    Returns:
        The study with valid options.

    Raises:
        UsageError: An unknown method, option or hyperparameter, or a bad value.
    """
    for name in (*study.methods, *study.tune):
        method_of(name)
    options = {}
    for name in study.options:
        method, written = method_of(name), study.options[name]
        changed = options_of(study, method).model_dump(mode="json", exclude_defaults=True)
        training_of(study, method)  # refuses bad values
        start = None if written.start == method.start else written.start
        if changed or written.training or start is not None:
            options[name] = MethodOptions(training=written.training, start=start, **changed)
    declared = {name: item for method in known.values() for name, item in method.space.items()}
    space: dict[str, tuple[float | str, ...]] = {}
    for name, values in study.search.space.items():
        if name not in declared:
            raise unknown("key of search", name, [*type(study.search).model_fields, *declared])
        narrowed = declared[name].narrowed(name, values)
        if narrowed != declared[name]:
            space[name] = _values(narrowed)
    check_first_names((method.space for method in known.values()), study)
    for method in tuned.values():
        space_of(method.space, study)
        if method.supernet is None:
            check_first(method.space, study)
    search = study.search.model_copy(update={"space": space})
    return study.model_copy(update={"options": options, "search": search})


def refuse_budgets(reason: str) -> Callable[[Study, Sequence[str]], None]:
    """Make the `check` of a method whose cost no budget can bound.

    Args:
        reason: Why, as a sentence about its networks.
    """

    def check(study: Study, budgets: Sequence[str]) -> None:
        if budgets:
            raise UsageError(
                f"a budget must bound what a network costs, and {reason}; found {budgets[0]}: "
                "leave --budget out, or tune another method"
            )

    return check


def refuse_stage_heads(parts: Parts, method: str) -> None:
    """Refuse heads that read several stages, for a method whose heads read one map.

    Raises:
        UsageError: There is such a head.
    """
    for task, head in parts.heads.items():
        if head.features:
            raise UsageError(
                f"heads of '{method}' must read the last map of the encoder alone, found head "
                f"'{head.kind}' for task {task}, which reads every stage: set tasks.{task}.head or "
                f"model.head to another, as light, or leave {method} out"
            )


def _values(item: Range | Choice) -> tuple[float | str, ...]:
    return (item.low, item.high) if isinstance(item, Range) else item.values
