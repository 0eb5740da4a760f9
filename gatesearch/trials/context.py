"""Open a study's data and choose its runtime; all trainings of a run share both."""

from collections.abc import Mapping
from pathlib import Path

from gatesearch.events import Emit, Log
from gatesearch.methods import Context, build_model
from gatesearch.results import MULTI_TASK
from gatesearch.study import Study
from gatesearch.training import Runtime, measure_memory_format, resolve_runtime
from gatesearch.trials.data import OpenedData, open_data


def open_context(
    study: Study, *, data: Path, stored: Mapping[str, str] | None, emit: Emit
) -> Context:
    """Open a study's data (`open_data`) and choose its runtime (`make_context`)."""
    return make_context(study, open_data(study, data=data, emit=emit), stored=stored, emit=emit)


def make_context(
    study: Study, opened: OpenedData, *, stored: Mapping[str, str] | None, emit: Emit
) -> Context:
    """Choose the runtime of a study whose data are open.

    Args:
        study: The definition.
        opened: Its data; training frames are moved to the device where it has room.
        stored: `precision` and `memory_format` that the store was begun with, which are used again;
            None to choose them.
        emit: Receives events.
    """
    runtime = _runtime(study, stored, emit)
    opened.train.keep_on(runtime.device)
    return Context(
        study=study, tasks=opened.tasks, train=opened.train, validation=opened.validation,
        test=opened.test, runtime=runtime, data=opened.description,
    )  # fmt: skip


def _runtime(study: Study, stored: Mapping[str, str] | None, emit: Emit) -> Runtime:
    training = study.training
    if stored:
        return resolve_runtime(stored["precision"], stored["memory_format"])
    runtime = resolve_runtime(training.precision, training.memory_format)
    if training.memory_format == "auto":
        runtime = measure_memory_format(
            lambda: build_model(study, MULTI_TASK, pretrained=False),
            (training.batch_size, 3, *study.protocol.size),
            runtime,
        )
    emit(Log(f"computing on {runtime.device}, {runtime.precision}, {runtime.memory_format}"))
    return runtime
