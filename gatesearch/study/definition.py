"""The definition of a study: tasks, data, protocol, training and search."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator

from gatesearch.errors import UsageError, nearest
from gatesearch.strict import Strict
from gatesearch.study.schema import (
    BaselinesSpec,
    DataSpec,
    ExecutionSpec,
    MethodOptions,
    ModelSpec,
    ProtocolSpec,
    SearchSpec,
    TaskSpec,
    TrainingSpec,
)
from gatesearch.study.validation import merged, refused, validated

# Raised by 1 whenever a change of the code changes the results of the same definition.
RESULTS_VERSION = 4

# Files and modules of networks are named after tasks, exported ones too.
_TASK_NAME = re.compile(r"[\w -]{1,100}")


def _fit_for_files(name: str) -> str:
    if name == "image":
        raise ValueError("a task cannot be named 'image', which is what all tasks read")
    if not _TASK_NAME.fullmatch(name):
        raise ValueError(
            "a task's name must be of 1 to 100 letters, digits, blanks, '-' and '_', found "
            f"{name[:100]!r}"
        )
    return name


TaskName = Annotated[str, AfterValidator(_fit_for_files)]


class Study(Strict):
    """A validated study definition: what `gatesearch run` reads from a TOML file, as a dict.

    Required are `name`, `tasks`, `protocol.size`, `data` and `training.epochs`. Any other table
    `[NAME]` holds options of the method NAME, as `[options.NAME]` does. These options are checked
    by `gatesearch.methods.check_study`, because only methods know them.

    >>> study = Study(
    ...     name="mine",
    ...     protocol={"size": (64, 64)},
    ...     tasks={"semseg": {"kind": "semseg", "classes": 8}, "depth": {"kind": "depth"}},
    ...     data={"dataset": "scenes", "train_frames": 64, "test_frames": 16, "validation": 16},
    ...     training={"epochs": 4},
    ... )
    >>> study.task_names, study.model.backbone, study.protocol.name
    (('semseg', 'depth'), 'resnet18', 'mine')

    Attributes:
        name: Name of the store's folder and of the report.
        summary: One line for `gatesearch studies`.
        seed: Seed of initialisation, data order and search; `--seed` changes it.
        methods: Baselines, names in `gatesearch.methods.METHODS`.
        tune: Methods whose hyperparameters are searched. When empty, the first of `METHODS` that
            has hyperparameters.
        weightings: Ways to balance the losses or gradients of the tasks, names in
            `gatesearch.training.weightings.WEIGHTINGS`. Every baseline is trained with each of
            them, except single-task networks, which have nothing to balance.
        baselines: Baselines at other widths.
        options: Method -> its options.
        balance: Weighting -> its options, as `[balance.cagrad]` with `c = 0.5`.
        data: The data set; in a file, `[[data]]` several times gives several.
        more_data: The data sets after the first.
        mixing: How batches are made of the frames of several data sets: of all frames alike
            (`frames`), of each set in its share (`share`), or of one set each, which is drawn by
            the shares (`task`).
        report_frames: Number of test frames drawn with predictions in the report.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = ""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    methods: tuple[str, ...] = ("stl", "mtl", "cross_stitch", "mtan")
    tune: tuple[str, ...] = ()
    weightings: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    report_frames: int = Field(default=3, ge=0, le=16)
    protocol: ProtocolSpec
    tasks: dict[TaskName, TaskSpec] = Field(min_length=1)
    data: DataSpec
    more_data: tuple[DataSpec, ...] = ()
    mixing: Literal["frames", "share", "task"] = "frames"
    model: ModelSpec = Field(default_factory=ModelSpec)
    training: TrainingSpec
    search: SearchSpec = SearchSpec()
    execution: ExecutionSpec = ExecutionSpec()
    baselines: BaselinesSpec = BaselinesSpec()
    options: dict[str, MethodOptions] = Field(default={})
    balance: dict[str, dict[str, Any]] = Field(default={})
    _folder: Path | None = PrivateAttr(default=None)

    def __init__(self, definition: Mapping[str, Any] | None = None, /, **values: Any) -> None:
        """Validate a definition that is given in Python.

        Args:
            definition: A dict with the keys of a study's file.
            values: Keys that are given by name; they replace those of `definition`.

        Raises:
            UsageError: An unknown or missing key, or a bad value; a line for each.
        """
        given: object = {} if definition is None else definition
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise UsageError(
                "a study is defined by a dict whose keys are those of its file, found "
                f"{given!r:.100}; read a file with gs.load_study"
            )
        whole = merged(given, values)
        name = whole.get("name")
        try:
            super().__init__(**whole)
        except ValidationError as error:
            where = f"study {name}" if isinstance(name, str) and name else "study"
            raise refused(type(self), error, where=where) from error
        for method in self.options:
            self.training_of(method)  # refuses bad values

    # By this, pydantic does not call `__init__` where it validates files (`load_study`).
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, raw: Any) -> Any:
        """Move tables `[NAME]` of methods into `options`.

        The list of several data sets becomes `data` and `more_data`. A table whose name is near to
        a known key is taken for a typing error and stays, so that it is refused.
        """
        if not isinstance(raw, Mapping):
            return raw
        if isinstance(raw.get("data"), list | tuple) and raw["data"]:
            first, *more = raw["data"]
            raw = {**raw, "data": first, **({"more_data": more} if more else {})}
        method_tables = {
            key: value
            for key, value in raw.items()
            if isinstance(value, Mapping) and key not in cls.model_fields
            if not nearest(key, cls.model_fields, cutoff=0.75)
        }
        rest = {key: value for key, value in raw.items() if key not in method_tables}
        options = rest.get("options", {})
        return rest | {"options": merged(options, method_tables) if method_tables else options}

    @model_validator(mode="before")
    @classmethod
    def _name_protocol(cls, raw: Any) -> Any:
        """Name a protocol without a name after the study."""
        protocol = raw.get("protocol") if isinstance(raw, Mapping) else None
        if not isinstance(protocol, Mapping) or "name" in protocol or "name" not in raw:
            return raw
        return {**raw, "protocol": {"name": raw["name"], **protocol}}

    @property
    def folder(self) -> Path | None:
        """Folder of the file that the study was read from, which paths of its data are relative to.

        None for a study that was read from a store or made in Python without one.
        """
        return self._folder

    def placed(self, folder: Path) -> "Study":
        """Return the study with its `folder`, which changes no result."""
        study = self.model_copy()
        study._folder = folder
        return study

    @property
    def sources(self) -> tuple["Study", ...]:
        """The study once per data set, as if it had that alone, with the tasks that it labels."""
        if not self.more_data:
            return (self,)
        alone = []
        for data in (self.data, *self.more_data):
            tasks = {name: self.tasks[name] for name in data.tasks or self.tasks}
            update = {"data": data, "more_data": (), "tasks": tasks}
            alone.append(self.model_copy(update=update))
        return tuple(alone)

    @model_validator(mode="after")
    def _check_sources(self) -> "Study":
        sources = (self.data, *self.more_data)
        unknown = [name for data in sources for name in data.tasks if name not in self.tasks]
        if unknown:
            raise ValueError(
                f"data.tasks must name tasks of the study, {', '.join(self.tasks)}, found "
                f"'{unknown[0]}'"
            )
        lacking = [t for t in self.tasks if all(d.tasks and t not in d.tasks for d in sources)]
        if lacking:
            raise ValueError(
                f"no data set has labels of task '{lacking[0]}'; name it in data.tasks"
            )
        given = [data.share is not None for data in sources]
        if any(given) and (not all(given) or self.mixing == "frames"):
            raise ValueError(
                "share must be given for every data set or none, with mixing = 'share' or 'task'"
            )
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the definition's order."""
        return tuple(self.tasks)

    def options_of(self, method: str) -> MethodOptions:
        """Return the options that the study gives a method, without defaults of the method."""
        return self.options.get(method, MethodOptions())

    def training_of(self, method: str) -> TrainingSpec:
        """Return the study's training settings with those that a method's options change.

        Raises:
            UsageError: The options have an unknown key or a bad value.
        """
        whole = merged(self.training.model_dump(), self.options_of(method).training)
        where = f"study {self.name}, options.{method}.training"
        spec: TrainingSpec = validated(TrainingSpec, whole, where=where)
        return spec

    def definition(self) -> dict[str, Any]:
        """Return all that changes results, as plain JSON values.

        Left out are the seed, which is kept with every result, and values that only add results to
        a store: methods, tuned methods, weightings, widths of baselines, first configurations,
        frames in the report, names of classes. A task's keys `label` and `head` are left out where
        they are not given, as in the definitions of stores that were begun before there were such
        keys.
        """
        kept = self.model_dump(
            mode="json",
            exclude={
                "summary": True, "seed": True, "methods": True, "tune": True,
                "weightings": True, "report_frames": True, "execution": True, "search": {"first"},
                "baselines": True,
                "options": {name: {"start"} for name, o in self.options.items() if o.start is None},
                "data": _unused(self.data),
                "more_data": {i: _unused(spec) for i, spec in enumerate(self.more_data)},
                "tasks": {
                    name: {"class_names", *(k for k in ("label", "head") if not getattr(task, k))}
                    for name, task in self.tasks.items()
                },
            },
        )  # fmt: skip
        data = {name: kept.pop(name) for name in ("more_data", "mixing")}
        if self.more_data:
            kept |= data
        return {"results_version": RESULTS_VERSION, **kept}

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> "Study":
        """Read the study of a stored definition; values that it leaves out get their defaults."""
        kept = {key: value for key, value in definition.items() if key != "results_version"}
        study: Study = validated(cls, kept, where="the store's definition")
        return study

    @property
    def fingerprint(self) -> str:
        """Digest of the definition, 12 hexadecimal digits; it changes whenever results would."""
        text = json.dumps(self.definition(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _unused(data: DataSpec) -> set[str]:
    """Keys that only studies of several data sets have, where they are not given."""
    return {key for key in ("tasks", "share") if not getattr(data, key)}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """List the dotted keys on which two definitions differ, as `key: theirs -> ours`.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 2 -> 1']
    """
    new, old = _flatten(ours), _flatten(theirs)
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(new.keys() | old.keys())
        if new.get(key) != old.get(key)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
