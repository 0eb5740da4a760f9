"""A training step of each sharing method, in each of its phases, against plain passes.

The step is the one that `Trainer` takes, with the phase's hooks, weighting, groups and turns. It is
compared with a plain training step, time and peak memory, on those passes that the method's
definition needs. ResNet-18 at half width, three tasks, 96x128, batches of 8, fp32, one thread, time
of the processor. Phases that train a multi-task network, such as warm-ups, are as `mtl`; the
supernets of InterroGate have `step_time` and `step_memory`.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from benchmarks.figure import Figure, in_turns
from benchmarks.phase_step import PhaseStep, State, random_context, state_of
from benchmarks.plain_passes import Beside, Branches, OneByOne, PlainStep, beside
from benchmarks.step_memory import peak_bytes
from gatesearch.methods import Context, NetworkSpec, build_model
from gatesearch.methods.branch import chosen, cut_points
from gatesearch.methods.den.elastic import ElasticNet
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.ecmt.slimmable import SlimmableNet, Widths, plain_slice
from gatesearch.methods.mtan import AttentionNet
from gatesearch.methods.nddr import NDDRNet
from gatesearch.models import Parts, parts_of
from gatesearch.models.nodes import INPUT
from gatesearch.training.split_data import Batch

Plain = Callable[[Context, Batch], PlainStep]

BAR = 1.10
ROUNDS = 5
# The residual block that each task skips, and the last one that all share, in AdaShare's network.
SKIPPED = {"depth": "layer3.1", "normals": "layer4.1"}
ALL_SHARE = "layer3.0"
_BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
_POLICY = {
    task: [int(block != SKIPPED.get(task)) for block in _BLOCKS]
    for task in ("semseg", "depth", "normals")
}
SETTINGS = (
    *("model.width=0.5", "training.batch_size=8", "training.epochs=20", "training.lr=1e-6"),
    *("options.dymu.finetune=0.25", "options.dymu.edges=0.5"),
)


@dataclass(frozen=True)
class Case:
    """A phase of a method and its plain passes.

    Attributes:
        name: Name of the figure.
        method: A name in `METHODS`.
        phase: Name of the phase.
        needs: The plain passes, in words.
        plain: (context, batch) -> step on them.
        start: Network whose weights training starts from.
        settings: More settings of the study.
        params: Hyperparameters.
        part: Of the specification.
        turn: See `PhaseStep`.
        fix: See `PhaseStep`.
    """

    name: str
    method: str
    phase: str
    needs: str
    plain: Plain
    start: Callable[[Context], State] | None = None
    settings: Sequence[str] = ()
    params: Mapping[str, float | str] = field(default_factory=dict)
    part: str = ""
    turn: int = 0
    fix: Callable[[nn.Module], None] = lambda module: None

    def steps(self, folder: Path) -> tuple[PhaseStep, PlainStep]:
        """Make the method's step and the plain one."""
        context = random_context(folder, *SETTINGS, *self.settings)
        trial = 0 if self.params else None
        spec = NetworkSpec(self.method, 0, trial, params=self.params, part=self.part)
        start = None if self.start is None else self.start(context)
        step = PhaseStep(context, spec, self.phase, start=start, turn=self.turn, fix=self.fix)
        return step, self.plain(context, step.batch)


def measure() -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [figure for case in CASES for figure in _measure(case)]
    finally:
        torch.set_num_threads(threads)


def _measure(case: Case) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        step, plain = case.steps(Path(folder))
        ratio, a, b = in_turns(step, plain, rounds=ROUNDS, clock=time.process_time)
        detail = f"{1e3 * a:.0f} ms against {1e3 * b:.0f} ms of {case.needs}"
        yield Figure(f"step of {case.name}", ratio, BAR, "x", detail)
        ours, theirs = peak_bytes(step), peak_bytes(plain)
        detail = f"{ours / 2**20:.0f} MiB against {theirs / 2**20:.0f} MiB"
        yield Figure(f"memory of {case.name}", ours / theirs, BAR, "x", detail)
        step.close()
    del step, plain
    gc.collect()


# --- plain passes


def _parts(context: Context) -> Parts:
    return parts_of(context.study)


def _same(method: str) -> Plain:
    return lambda context, batch: PlainStep(context, batch, build_model(context.study, method))


def _branches(
    last: str, *, own: bool, inputs_only: bool = False, skipped: Mapping[str, str] | None = None
) -> Plain:
    def plain(context: Context, batch: Batch) -> PlainStep:
        parts = _parts(context)
        network = Branches(parts, last, own=own, inputs_only=inputs_only, skipped=skipped)
        return PlainStep(context, batch, network)

    return plain


def _with_modules(base: str, method: str, modules: Callable[[nn.Module], list[nn.Module]]) -> Plain:
    """A network, and modules of a method beside it."""

    def plain(context: Context, batch: Batch) -> PlainStep:
        study, image = context.study, torch.zeros(8, 3, *context.study.protocol.size)
        network = build_model(study, method)
        added = beside(network, image, modules(network))
        return PlainStep(context, batch, build_model(study, base), beside=added)

    return plain


def _fusions(network: nn.Module) -> list[nn.Module]:
    rows = cast(NDDRNet, network).fusions
    return [fusion for row in rows for fusion in cast(nn.ModuleList, row)]


def _attention(network: nn.Module) -> list[nn.Module]:
    attention = cast(AttentionNet, network)
    masks = [mask for row in attention.masks.values() for mask in cast(nn.ModuleList, row)]
    return [*masks, *attention.refine]


def _den_selector(context: Context, batch: Batch) -> PlainStep:
    selector = ElasticNet(_parts(context)).selector
    passes = _Detached(Branches(_parts(context), INPUT, own=False))
    return PlainStep(context, batch, passes, beside=[Beside(selector, "image")])


def _den_network(context: Context, batch: Batch) -> PlainStep:
    selector = ElasticNet(_parts(context)).selector
    network = Branches(_parts(context), INPUT, own=False)
    return PlainStep(context, batch, network, ahead=[selector])


class _Detached(nn.Module):
    """A network without gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            outputs: dict[str, torch.Tensor] = self.network(image)
        return outputs


def _norms_alone(context: Context, batch: Batch) -> PlainStep:
    network = build_model(context.study, "stl")
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(True)
    return PlainStep(context, batch, network)


def _slice_and_full(context: Context, batch: Batch) -> PlainStep:
    parts, whole = _parts(context), build_model(context.study, "mtl")
    network = plain_slice(whole.state_dict(), parts, HALF)
    return PlainStep(context, batch, network, ahead=[parts.encoder()])


def _one_by_one(context: Context, batch: Batch) -> PlainStep:
    return OneByOne(context, batch, build_model(context.study, "mtl"))


def _branch(context: Context, batch: Batch) -> PlainStep:
    last = chosen(0.5, cut_points(_parts(context).graph))
    return _branches(last, own=True)(context, batch)


# --- starts and draws


def _trained(method: str) -> Callable[[Context], State]:
    return lambda context: state_of(build_model(context.study, method))


def _cheap(module: nn.Module) -> None:
    """Let the drawn cost weight be 0: each task then has a stream of its own."""
    draws = cast(DymuNet, module).draws
    draws.cost.zero_()
    draws.preference.fill_(1 / len(draws.preference))


HALF = Widths(0.5, (0.5, 0.5, 0.5))


def _half(module: nn.Module) -> None:
    cast(SlimmableNet, module).widths = HALF


ENCODERS = "T encoders and heads"
CASES = (
    Case("mtl", "mtl", "whole", "one encoder and T heads", _same("mtl")),
    Case("cross_stitch", "cross_stitch", "whole", ENCODERS, _same("stl"),
         start=_trained("stl")),
    Case("sluice", "sluice", "whole", ENCODERS, _same("stl")),
    Case("nddr", "nddr", "whole", f"{ENCODERS}, T fusion layers behind each stage",
         _with_modules("stl", "nddr", _fusions), start=_trained("stl")),
    Case("mtan", "mtan", "whole", "one encoder, T heads, masks and refinements",
         _with_modules("mtl", "mtan", _attention)),
    Case("den, elastic", "den", "elastic", "one encoder T times, T heads",
         _branches(INPUT, own=False)),
    Case("den, selector", "den", "selector 1", "T forward passes, the selector", _den_selector),
    Case("den, network", "den", "network 1", "one encoder T times, T heads, forward of selector",
         _den_network),
    Case("adashare, weights", "adashare", "policy", "one encoder, T times behind its first block",
         _branches("layer1.0", own=False), start=_trained("mtl")),
    Case("adashare, policy", "adashare", "policy", "the same without gradients of weights",
         _branches("layer1.0", own=False, inputs_only=True), start=_trained("mtl"), turn=1),
    Case("adashare, network", "adashare", "given", "its blocks",
         _branches(ALL_SHARE, own=False, skipped=SKIPPED),
         settings=[f"options.adashare.policy.{t}={row}" for t, row in _POLICY.items()]),
    Case("lomt, sparse", "lomt", "sparse", ENCODERS, _same("stl")),
    Case("lomt, layer-optimized", "lomt", "layer-optimized", "one encoder and T heads",
         _same("mtl")),
    Case("ecmt, slimmable", "ecmt", "slimmable",
         "encoder and T heads at half width, forward of the full encoder", _slice_and_full,
         fix=_half),
    Case("dymu, edges", "dymu", "edges", f"{ENCODERS} without gradients of weights",
         _branches("maxpool", own=True, inputs_only=True), start=_trained("stl"),
         part="supernet"),
    Case("dymu, weights", "dymu", "weights", f"{ENCODERS}, gradients of norms alone",
         _norms_alone, start=_trained("stl"), part="supernet", fix=_cheap),
    Case("dymu, tree", "dymu", "tree", "one encoder and T heads", _same("mtl"),
         start=_trained("dymu"),
         params={"prefer.semseg": 1.0, "prefer.depth": 1.0, "prefer.normals": 1.0,
                 "cost_weight": 1.0}),
    Case("gradsplit", "gradsplit", "split", "one forward, T backward passes of one encoder",
         _one_by_one),
    Case("branch", "branch", "branched", "its blocks", _branch),
)  # fmt: skip
