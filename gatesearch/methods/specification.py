"""What to train, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gatesearch.cost import Budget, name_of
from gatesearch.methods import needs_stl
from gatesearch.methods.interrogate.phases import spans
from gatesearch.results import Result, network_name
from gatesearch.study import Study

Role = Literal["network", "warmup", "supernet_warmup", "supernet"]


@dataclass(frozen=True)
class NetworkSpec:
    """What to train: plain values, so that any worker could.

    Attributes:
        method: A name in `gatesearch.methods.METHODS`.
        seed: Of initialisation, data order, augmentation.
        trial: Number in the store; None for a baseline.
        params: Of a trial: `lambda_s`, `tau.<task>`, `regulariser` and `weighting` of a supernet's,
            `weight.<task>` of one that tries weights of losses.
        weighting: How losses or gradients are balanced; a warm-up's are not.
        budgets: Upper bounds on the cost of a trial's network.
        role: A network of its own, or what trials start from: a multi-task warm-up, or the
            one-shot supernet, which has a warm-up too.
        one_shot: Whether a trial is cut from the one-shot supernet; `params` are `share.<task>`.
    """

    method: str
    seed: int
    trial: int | None = None
    params: Mapping[str, float | str] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    role: Role = "network"
    one_shot: bool = False
    weighting: str = "uniform"

    @property
    def label(self) -> str:
        """For people: `trial 3`, `mtl`."""
        if self.trial is not None:
            trial = f"trial {self.trial}"
            tries = self.weighting == "scalar"
            return f"{network_name(self.method, self.weighting)}, {trial}" if tries else trial
        if self.warms_up:
            return "warm-up"
        return "supernet" if self.role == "supernet" else network_name(self.method, self.weighting)

    @property
    def budget(self) -> str:
        """The budgets' common name; empty for none."""
        return name_of(self.budgets)

    @property
    def part(self) -> str:
        """Its role as `Result.part` has it."""
        return "" if self.role == "network" else self.role

    @property
    def warms_up(self) -> bool:
        """Whether it is a multi-task network that gated streams start from."""
        return self.role in ("warmup", "supernet_warmup")

    def folder(self, out: Path) -> Path:
        """Where its network is kept."""
        if self.trial is not None:
            return out / "trials" / f"{self.trial:04d}"
        if self.role != "network":
            return out / f"{self.role}s" / f"seed{self.seed}"
        named = [self.method] if self.weighting == "uniform" else [self.method, self.weighting]
        return out / "baselines" / "-".join([*named, f"seed{self.seed}"])

    @classmethod
    def of(cls, result: Result) -> "NetworkSpec":
        """Of a network that was trained, as far as its files go."""
        return cls(result.method, result.seed, result.trial, weighting=result.weighting)


def start_of(candidate: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Whose trained network a candidate's begins with; None where its weights are drawn."""
    if candidate.one_shot:
        return NetworkSpec(candidate.method, candidate.seed, role="supernet")
    if candidate.method == "interrogate" and not candidate.warms_up:
        nested = candidate.role == "supernet"
        if spans(study, one_shot=nested)[0] > 0:
            role: Role = "supernet_warmup" if nested else "warmup"
            return NetworkSpec(candidate.method, candidate.seed, role=role)
    if needs_stl(study, candidate.method):
        return NetworkSpec("stl", candidate.seed)
    return None
