"""The specification of a network to train, as plain values that any process can read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatesearch.cost import Budget, name_of
from gatesearch.results import Result, control_name, network_name


@dataclass(frozen=True)
class ControlSpec:
    """What a control network is compared with; see `gatesearch.methods.controls`.

    Attributes:
        kind: What it controls for, such as `random`.
        of: Number of the trial that it is compared with.
        method: Method of that trial.
        macs: Multiply-adds of the trial's network, which bound the control's.
        pflops: Training cost of the trial, which the control's training spends, FLOPs / 1e15;
            without that of the single-task networks, if both start from them.
        from_single_task: Whether both start from the trained single-task networks.
        gates: The trial's gate pattern, in the form of `Result.gates`; empty where it has none.
    """

    kind: str
    of: int
    method: str = ""
    macs: int = 0
    pflops: float = 0.0
    from_single_task: bool = False
    gates: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkSpec:
    """A network to train.

    Attributes:
        method: A name in `gatesearch.methods.METHODS`.
        seed: Seed of initialisation, data order and augmentation.
        trial: Number of the trial in the store; None for a baseline or a start network.
        params: Parameter -> value that the search chose for a trial: hyperparameters of its
            method, and `weighting` where that is searched too. In a search for weights of losses:
            `weight.<task>`.
        budgets: Upper bounds on the cost of a trial's network.
        part: Empty for a baseline or trial. For a start network, whose weights other networks of
            the method start from, the name that the method gives it, such as `warm-up`.
        weighting: How losses or gradients are balanced, a name in
            `gatesearch.training.weightings.WEIGHTINGS`.
        width: Factor of `model.width`, for a baseline at another width.
        control: What a control network is compared with; None for any other network.
    """

    method: str
    seed: int
    trial: int | None = None
    params: Mapping[str, float | str] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    part: str = ""
    weighting: str = "uniform"
    width: float = 1.0
    control: ControlSpec | None = None

    @property
    def label(self) -> str:
        """Name in messages: `trial 3`, `mtl`, `warm-up of adashare`, `even of trial 3, seed 0`.

        A baseline's seed is said unless it is 0: `mtl, seed 1`.
        """
        if self.control is not None:
            return f"{control_name(self.control.kind, self.control.of)}, seed {self.seed}"
        if self.trial is None:
            name = network_name(self.method, self.weighting, self.width)
            name = f"{self.part} of {self.method}" if self.part else name
            return f"{name}, seed {self.seed}" if self.seed else name
        trial = f"trial {self.trial}"
        return f"{network_name(self.method, SCALAR)}, {trial}" if self.tries_weights else trial

    @property
    def trained_as(self) -> str:
        """Name of the method whose training settings hold: for a control, that of its trial."""
        control = self.control
        return self.method if control is None or not control.method else control.method

    @property
    def tries_weights(self) -> bool:
        """True for a trial of a search for the weights of losses."""
        return self.trial is not None and self.weighting == SCALAR

    @property
    def budget(self) -> str:
        """Common name of the budgets; empty without any."""
        return name_of(self.budgets)

    def folder(self, out: Path) -> Path:
        """Return the folder that holds the network and the files of its training.

        Args:
            out: The store's folder.
        """
        if self.trial is not None:
            return trial_folder(out, self.trial)
        seed = f"seed{self.seed}"
        if self.control is not None:
            return out / "controls" / "-".join([f"{self.control.of:04d}", self.control.kind, seed])
        if self.part:
            return out / "starts" / "-".join([self.method, self.part, seed])
        weighting = [] if self.weighting == "uniform" else [self.weighting]
        width = [] if self.width == 1 else [f"x{self.width:g}"]
        return out / "baselines" / "-".join([self.method, *weighting, *width, seed])

    def to_json(self) -> dict[str, Any]:
        """Convert it to plain JSON values; what later versions added is left out where unused."""
        values = asdict(self)
        for budget in values["budgets"]:
            if not budget["task"]:
                del budget["task"]
        if self.control is None:
            del values["control"]
        if self.width == 1:
            del values["width"]
        return values

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "NetworkSpec":
        """Read the specification that `to_json` wrote."""
        values = dict(stored)
        values["budgets"] = tuple(Budget(**budget) for budget in values["budgets"])
        if "control" in values:
            values["control"] = ControlSpec(**values["control"])
        return cls(**values)

    @classmethod
    def of(cls, result: Result) -> "NetworkSpec":
        """Specify the network of a result by what names it; all else is left empty."""
        return cls(
            result.method,
            result.seed,
            result.trial,
            part=result.part,
            weighting=result.weighting,
            width=result.width,
            control=None if result.of is None else ControlSpec(result.control, result.of),
        )


# The weighting whose fixed weights are searched.
SCALAR = "scalar"


def trial_folder(out: Path, number: int) -> Path:
    """Return the folder of a trial in a store's folder."""
    return out / "trials" / f"{number:04d}"
