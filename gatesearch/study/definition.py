"""What is trained, on which data, under which protocol, and what is searched."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from gatesearch.errors import nearest
from gatesearch.strict import Strict
from gatesearch.study.schema import (
    DataSpec,
    ExecutionSpec,
    MethodOptions,
    ModelSpec,
    ProtocolSpec,
    SearchSpec,
    TaskSpec,
    TrainingSpec,
)
from gatesearch.study.validation import merged, validated

# Raised whenever a change of the code changes what the same definition results in.
RESULTS_VERSION = 3


class Study(Strict):
    """A validated study definition.

    A table that is none of these, `[NAME]`, holds options of the method NAME, as `[options.NAME]`
    does. What a method makes of its options is checked where methods are known
    (`gatesearch.methods.check_study`).

    Attributes:
        name: Names the store's folder and the report.
        summary: One line for `gatesearch studies`.
        seed: Seed of initialisation, data order and search; `--seed` changes it.
        methods: Baselines trained beside the search, names in `gatesearch.methods.METHODS`.
        tune: Methods whose hyperparameters are searched; the first of `METHODS` that has any when
            empty.
        weightings: How the losses or gradients of these baselines are balanced, each in every way;
            names in `gatesearch.training.WEIGHTINGS`. Single-task networks have nothing to balance.
        options: Method -> its options.
        balance: Weighting -> its options, as `[balance.cagrad]` with `c = 0.5`.
        report_frames: Frames drawn with predictions in the report.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = ""
    seed: int = Field(default=0, ge=0)
    methods: tuple[str, ...] = ("stl", "mtl", "cross_stitch", "mtan")
    tune: tuple[str, ...] = ()
    weightings: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    report_frames: int = Field(default=3, ge=0, le=16)
    protocol: ProtocolSpec
    tasks: dict[str, TaskSpec] = Field(min_length=1)
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    search: SearchSpec = SearchSpec()
    execution: ExecutionSpec = ExecutionSpec()
    options: dict[str, MethodOptions] = Field(default={})
    balance: dict[str, dict[str, Any]] = Field(default={})

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, raw: Any) -> Any:
        """Move tables named after a method into `options`; a mistyped table's name stays."""
        if not isinstance(raw, Mapping):
            return raw
        named = {
            key: value
            for key, value in raw.items()
            if isinstance(value, Mapping) and key not in cls.model_fields
            if not nearest(key, cls.model_fields, cutoff=0.75)
        }
        known = {key: value for key, value in raw.items() if key not in named}
        options = known.get("options", {})
        return known | {"options": merged(options, named) if named else options}

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the definition's order."""
        return tuple(self.tasks)

    def options_of(self, method: str) -> MethodOptions:
        """The options of a method, as they are written."""
        return self.options.get(method, MethodOptions())

    def training_of(self, method: str) -> TrainingSpec:
        """The training of one method: the study's, with that method's own keys laid over it."""
        whole = merged(self.training.model_dump(), self.options_of(method).training)
        where = f"study {self.name}, options.{method}.training"
        spec: TrainingSpec = validated(TrainingSpec, whole, where=where)
        return spec

    def definition(self) -> dict[str, Any]:
        """All that changes results, as plain JSON values; what `fingerprint` is made of."""
        # The seed is kept with every result, and so is what a trial draws; methods, tuned methods,
        # weightings, frames and first configurations only say what is added.
        kept = self.model_dump(
            mode="json",
            exclude={
                "summary": True, "seed": True, "methods": True, "tune": True,
                "weightings": True, "report_frames": True, "execution": True, "search": {"first"},
                "options": {name: {"start"} for name, o in self.options.items() if o.start is None},
            },
        )  # fmt: skip
        return {"results_version": RESULTS_VERSION, **kept}

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> "Study":
        """The study of a stored definition; seed and methods are the defaults."""
        kept = {key: value for key, value in definition.items() if key != "results_version"}
        study: Study = validated(cls, kept, where="the store's definition")
        return study

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change whenever results would."""
        text = json.dumps(self.definition(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted keys on which two definitions differ, as `key: theirs -> ours`.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 2 -> 1']
    """
    left, right = _flatten(ours), _flatten(theirs)
    return [
        f"{key}: {right.get(key, 'absent')} -> {left.get(key, 'absent')}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
