"""What is trained, on which data, under which protocol, and what is searched."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from gatesearch.errors import UsageError
from gatesearch.strict import Strict
from gatesearch.study.schema import (
    DataSpec,
    ExecutionSpec,
    GateSpec,
    MethodOptions,
    ModelSpec,
    OneShotSpec,
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

    Attributes:
        name: Names the store's folder and the report.
        summary: One line for `gatesearch studies`.
        seed: Seed of initialisation, data order and search; `--seed` changes it.
        methods: Baselines trained beside InterroGate, names in `gatesearch.methods.METHODS`.
        weightings: How the losses or gradients of these baselines are balanced, each in every way;
            names in `gatesearch.training.WEIGHTINGS`. Single-task networks have nothing to balance.
        balance: Weighting -> its options, as `[balance.cagrad]` with `c = 0.5`.
        report_frames: Frames drawn with predictions in the report.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = ""
    seed: int = Field(default=0, ge=0)
    methods: tuple[str, ...] = ("stl", "mtl", "cross_stitch", "mtan")
    weightings: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    report_frames: int = Field(default=3, ge=0, le=16)
    protocol: ProtocolSpec
    tasks: dict[str, TaskSpec] = Field(min_length=1)
    data: DataSpec
    model: ModelSpec
    interrogate: GateSpec = GateSpec()
    training: TrainingSpec
    search: SearchSpec = SearchSpec()
    one_shot: OneShotSpec = OneShotSpec()
    execution: ExecutionSpec = ExecutionSpec()
    options: dict[str, MethodOptions] = Field(default={})
    balance: dict[str, dict[str, Any]] = Field(default={})

    @model_validator(mode="after")
    def _supernet_has_epochs(self) -> "Study":
        rest = 1 - self.one_shot.warmup - self.one_shot.finetune
        if self.search.mode == "one_shot" and rest <= 0:
            raise ValueError(
                "one_shot.warmup + one_shot.finetune must leave a share of the epochs for the "
                f"supernet, found {self.one_shot.warmup} + {self.one_shot.finetune}"
            )
        return self

    @model_validator(mode="after")
    def _first_are_whole(self) -> "Study":
        for given in self.search.first:
            if given.tau.keys() != self.tasks.keys():
                raise ValueError(
                    f"search.first: tau must name every task ({', '.join(self.tasks)}), found "
                    f"{', '.join(given.tau) or 'none'}"
                )
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the definition's order."""
        return tuple(self.tasks)

    def training_of(self, method: str, *, one_shot: bool = False) -> TrainingSpec:
        """The training of one method: the study's, with that method's own keys laid over it.

        Args:
            method: Its name.
            one_shot: Whether it is of the one training for the whole front.
        """
        own = dict(self.options.get(method, MethodOptions()).training)
        if one_shot and self.one_shot.epochs is not None:
            own["epochs"] = self.one_shot.epochs
        whole = merged(self.training.model_dump(), own)
        where = f"study {self.name}, options.{method}.training"
        spec: TrainingSpec = validated(TrainingSpec, whole, where=where)
        return spec

    def arguments_of(self, method: str) -> dict[str, Any]:
        """Keyword arguments that the study gives the method's builder."""
        return self.options.get(method, MethodOptions()).arguments

    def definition(self) -> dict[str, Any]:
        """All that changes results, as plain JSON values; what `fingerprint` is made of."""
        # The seed is kept with every result, and so is what a trial draws; methods, weightings,
        # frames and first configurations only say what is added.
        kept = self.model_dump(
            mode="json",
            exclude={
                "summary": True, "seed": True, "methods": True, "weightings": True,
                "report_frames": True, "execution": True, "search": {"mode", "first"},
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


def completed(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored definition with the options that came after it, which then had their defaults."""
    try:
        whole = Study.from_definition(definition).definition()
    except UsageError:  # of another version altogether
        return definition
    return whole | {"results_version": definition.get("results_version")}


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
