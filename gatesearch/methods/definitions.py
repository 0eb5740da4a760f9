"""What a study says of methods: options validated, defaults left out, starts resolved."""

from collections.abc import Callable, Mapping

from gatesearch.errors import unknown
from gatesearch.methods.base import Method, Options
from gatesearch.methods.space import Choice, Range, check_first, space_of
from gatesearch.methods.specification import NetworkSpec
from gatesearch.results import SINGLE_TASK
from gatesearch.study import MethodOptions, Study, TrainingSpec
from gatesearch.study.validation import validated


def options_of(study: Study, method: Method[Options]) -> Options:
    """The options of a method, its defaults where the study gives none.

    Raises:
        UsageError: An unknown option or a bad value.
    """
    own = study.options_of(method.name).own
    options: Options = validated(method.options, own, where=f"options.{method.name}")
    return options


def training_of(study: Study, method: Method[Options]) -> TrainingSpec:
    """How a method is trained."""
    return study.training_of(method.name) if method.training is None else method.training(study)


def starts_from_single_task(study: Study, method: Method[Options]) -> bool:
    """Whether a method's weights start from the trained single-task networks."""
    if method.name == SINGLE_TASK:
        return False
    start = study.options_of(method.name).start or method.start
    return start == "stl" or study.model.init == "stl"


def single_task_start(
    spec: NetworkSpec, study: Study, method: Method[Options]
) -> NetworkSpec | None:
    """The single-task networks of the seed where a method starts from them, else None."""
    return NetworkSpec(SINGLE_TASK, spec.seed) if starts_from_single_task(study, method) else None


def checked(
    study: Study,
    tuned: Mapping[str, Method[Options]],
    method_of: Callable[[str], Method[Options]],
    known: Mapping[str, Method[Options]],
) -> Study:
    """A study whose methods are known and whose options are valid; what is default is left out.

    So two definitions that mean the same have one fingerprint, however they are written.

    Args:
        study: As it was read.
        tuned: Methods that are searched.
        method_of: Gives a method by name, or raises `UsageError`.
        known: All methods there are.

    Raises:
        UsageError: An unknown method, option or hyperparameter, or a bad value.
    """
    for name in (*study.methods, *study.tune):
        method_of(name)
    options = {}
    for name in study.options:
        method, written = method_of(name), study.options[name]
        own = options_of(study, method).model_dump(mode="json", exclude_defaults=True)
        training_of(study, method)
        start = None if written.start == method.start else written.start
        if own or written.training or start is not None:
            options[name] = MethodOptions(training=written.training, start=start, **own)
    spaces = {name: item for method in known.values() for name, item in method.space.items()}
    space: dict[str, tuple[float | str, ...]] = {}
    for name, values in study.search.space.items():
        if name not in spaces:
            raise unknown("key of search", name, [*type(study.search).model_fields, *spaces])
        narrowed = spaces[name].narrowed(name, values)
        if narrowed != spaces[name]:
            space[name] = _values(narrowed)
    for method in tuned.values():
        space_of(method.space, study)
        if method.supernet is None:
            check_first(method.space, study)
    search = study.search.model_copy(update={"space": space})
    return study.model_copy(update={"options": options, "search": search})


def _values(item: Range | Choice) -> tuple[float | str, ...]:
    return (item.low, item.high) if isinstance(item, Range) else item.values
