"""Proofs for imported networks: `python -m benchmarks.imported [NAME ...] [--patterns N]`.

Each network becomes a supernet of two tasks with light heads, at full width on images of 64x64,
with gates behind layers (`conv`), blocks and, where there is attention, whole heads. Its weights
are random, and batch norms have the statistics of a random batch, so that values keep their size
from layer to layer. One row a network:

- seconds of the import, and nodes of the graph;
- patterns whose cost was compared;
- largest difference between outputs of the supernet and of the extracted network on random
  patterns, over the largest output, with encoders in float32, and in float64, where rounding cannot
  hide an error (heads return float32, so that differences below 6e-8 show as 0);
- whether the formula gives what fvcore counts on the extracted network, multiply-adds and
  parameters, for every pattern;
- whether all gates closed cost what MTL costs, and all open what STL does, to the last
  multiply-add and parameter;
- smallest and largest share of a budget that random gates take after projection;
- largest difference of the exported network from PyTorch, on more images at once than it was
  written with;
- figures on which fvcore, thop and torch disagree, for the encoder and an extracted network.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.cost import Budget, Cost, PatternCost, project
from gatesearch.errors import GatesearchError, first_line
from gatesearch.export import Card, parity, write_network
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models import GatedSupernet
from gatesearch.models.channel_units import per_channel, unit_count, unit_index
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.imported import import_backbone
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.pruning import CompactNet, describe_pattern, extract

NETWORKS = (
    *(f"timm:{name}" for name in (
        "resnet18", "resnet50", "resnext50_32x4d", "regnety_002", "mobilenetv3_small_100",
        "efficientnet_b0", "convnext_atto", "convnextv2_atto", "densenet121", "ghostnet_100",
        "repvgg_a0", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224", "pvt_v2_b0",
    )),
    *(f"torchvision:{name}" for name in (
        "resnet50", "mobilenet_v3_small", "convnext_tiny", "swin_t", "vit_b_16",
    )),
)  # fmt: skip
SIZE = (64, 64)
SHAPE = (1, 3, *SIZE)
GRANULARITIES = ("conv", "block", "head")
# Patterns whose outputs are compared, fewer than those whose cost is.
COMPARED = 2
# Budgets as multiples of the cost of MTL, and of STL.
OF_MTL, OF_STL = (1.25, 1.6), (0.9,)
# Highest differences in float64 and of an exported file; least share of a budget.
ERROR, EXPORTED, LEAST = 1e-6, 1e-4, 0.98

Pattern = dict[str, Tensor]


@dataclass(frozen=True)
class Proof:
    """What was found for one network; see the top of this file.

    Attributes:
        network: Its name.
        import_s: Seconds.
        nodes: Number of nodes.
        patterns: Patterns whose cost was compared, over all granularities.
        gap32: Granularity -> largest relative difference in float32.
        gap64: The same in float64.
        formula: Whether the formula is fvcore's count.
        ends: Whether the ends are MTL and STL.
        budgets: Granularity -> (smallest, largest) share of a budget.
        onnx: Relative difference, or the error.
        pt2: The same.
        disagreements: Lines of `Cost.disagreements`, and operators that nobody counts.
    """

    network: str
    import_s: float
    nodes: int
    patterns: int
    gap32: dict[str, float]
    gap64: dict[str, float]
    formula: bool
    ends: bool
    budgets: dict[str, tuple[float, float]]
    onnx: float | str
    pt2: float | str
    disagreements: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether all of it is as it must be; whole heads may leave more of a budget over."""
        exported = (self.onnx, self.pt2)
        least = {kind: share[0] for kind, share in self.budgets.items() if kind != "head"}
        return (
            self.formula
            and self.ends
            and not self.disagreements
            and max(self.gap64.values()) < ERROR
            and min(least.values()) >= LEAST
            and max(share[1] for share in self.budgets.values()) <= 1
            and all(isinstance(gap, float) and gap <= EXPORTED for gap in exported)
        )

    def row(self) -> str:
        """Format it as a row of a table in Markdown."""
        cells: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                shown = " / ".join(_shown(v) for v in value.values())
            else:
                shown = _shown(value)
            cells.append(shown)
        return f"| {' | '.join(cells)} |"


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "NO"
        case float():
            return "0" if value == 0 else f"{value:.1f}" if value > 0.1 else f"{value:.0e}"
        case (float() as low, float() as high):
            return f"{low:.4f}-{high:.4f}"
        case tuple():
            return "; ".join(map(str, value)) or "none"
    return str(value)


HEADER = (
    "| network | import, s | nodes | patterns | float32 | float64 | formula | ends | budgets "
    "| ONNX | pt2 | disagreements |\n" + "|---" * 12 + "|"
)


def parts_of_graph(graph: Graph) -> Parts:
    """Two tasks with small light heads over an encoder."""
    heads = {"semseg": 8, "depth": 1}
    return Parts(graph, {t: HeadSpec("light", graph.outputs, 8, n) for t, n in heads.items()})


def granularities(graph: Graph) -> tuple[str, ...]:
    """`head` only where there is attention."""
    attends = any(node.whole_groups and len(node.sources) > 1 for node in graph)
    return GRANULARITIES if attends else GRANULARITIES[:2]


def patterns(model: GatedSupernet, seed: int) -> Iterator[Pattern]:
    """Draw patterns without end: a share of open gates for every layer and task, ends included."""
    rng = np.random.default_rng(seed)
    widths = {node.name: node.outputs for node in model.graph}
    while True:
        pattern = {}
        for name in model.gated:
            shape = (len(model.tasks), unit_count(model.units, name, widths[name]))
            share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], size=(shape[0], 1))
            if rng.random() < 0.2:
                share[:] = rng.choice([0.0, 1.0])
            units = torch.from_numpy(rng.random(shape) < share)
            pattern[name] = per_channel(units, unit_index(model.units, name))
        yield pattern


@torch.no_grad()
def scatter(model: nn.Module, image: Tensor) -> None:
    """Make the weights of all streams differ, and give batch norms the statistics of a batch."""
    for parameter in model.parameters():
        deviation = float(parameter.std()) if parameter.numel() > 1 else 0.0
        parameter.add_((torch.rand_like(parameter) - 0.5) * max(deviation, 0.2 * (deviation == 0)))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


@torch.no_grad()
def gap(ours: nn.Module, theirs: nn.Module, image: Tensor) -> float:
    """Largest difference over the largest value, over all tasks."""
    a, b = ours(image), theirs(image)
    return max(float((a[task] - b[task]).abs().max() / b[task].abs().max()) for task in b)


def largest_gap(
    model: GatedSupernet, drawn: Sequence[Pattern], image: Tensor, dtype: torch.dtype
) -> float:
    """Largest difference between supernet and extracted network, with encoders of a dtype."""
    differences = []
    torch.set_default_dtype(dtype)  # of the extracted network
    try:
        model.to(dtype)
        for pattern in drawn:
            model.set_gates(pattern)
            differences.append(gap(extract(model), model, image.to(dtype)))
    finally:
        torch.set_default_dtype(torch.float32)
        model.to(torch.float32)
    return max(differences)


def counted(model: GatedSupernet, pattern: Pattern, *, cross_check: bool = False) -> Cost:
    """Count the extracted network of a pattern, without weights."""
    description = describe_pattern(model, pattern)
    with torch.device("meta"):
        compact = CompactNet(description)
    return gs.count_macs(compact, SHAPE, cross_check=cross_check)


def by_formula(cost: PatternCost, pattern: Pattern) -> tuple[int, int]:
    """(Multiply-adds, parameters) of a pattern by formula."""
    return int(cost.macs(pattern)), int(cost.params(pattern))


def ends_equal(model: GatedSupernet, cost: PatternCost) -> bool:
    """Whether MTL and STL cost what all gates closed and open do: extracted, and by formula."""
    parts = parts_of_graph(model.graph)
    for on, method in ((False, MultiTaskNet), (True, SingleTaskNets)):
        pattern = {name: torch.full_like(g, on) for name, g in model.hard_gates().items()}
        with torch.device("meta"):
            plain = gs.count_macs(method(parts), SHAPE, cross_check=False)
        ours = counted(model, pattern)
        figures = {(ours.macs, ours.params), (plain.macs, plain.params), by_formula(cost, pattern)}
        if len(figures) > 1:
            return False
    return True


def budget_shares(model: GatedSupernet, cost: PatternCost) -> tuple[float, float]:
    """Smallest and largest share of budgets that random gates take after projection."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: gates.shape for name, gates in model.hard_gates().items()}
    closed, opened = (
        float(cost.macs({name: torch.full(shape, on) for name, shape in shapes.items()}))
        for on in (False, True)
    )
    limits = [x * closed for x in OF_MTL] + [x * opened for x in OF_STL]
    shares = []
    for limit in limits:
        alpha = {}
        for name, (tasks, channels) in shapes.items():
            units = unit_count(model.units, name, channels)
            drawn = torch.randn(tasks, units, generator=generator)
            alpha[name] = per_channel(drawn, unit_index(model.units, name))
        found = project(alpha, cost, [Budget("", "macs", min(limit, opened))])
        shares.append(float(cost.macs(found)) / limit)
    return min(shares), max(shares)


def card(network: str) -> Card:
    """Card of an exported network of the two tasks."""
    tasks = {
        "semseg": {"kind": "semseg", "classes": 8, "values": "scores", "metric": "mIoU %"},
        "depth": {"kind": "depth", "classes": 1, "values": "metres", "metric": "RMSE m"},
    }
    return Card(
        study="proof", fingerprint="f", protocol="proof", network=network, size=SIZE,
        gflops=1.0, params_m=1.0, tasks={n: t | {"measured": {}} for n, t in tasks.items()},
    )  # fmt: skip


def exported(compact: CompactNet, form: str) -> float | str:
    """Relative difference of an exported file from PyTorch on three images, or the error.

    Files are written with two images. Values are spread as those that the batch norms have seen;
    networks of random weights enlarge the rounding errors of any others.
    """
    frames = np.random.default_rng(0).normal(118, 58, (3, 3, *SIZE)).clip(0, 255).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network.{form}"
        try:
            write_network(compact, card("proof"), path, form=form)
            return parity(compact, path, frames)
        except GatesearchError as error:
            return first_line(error)[:200]
        except Exception as error:  # torch.export, onnxscript and onnxruntime have their own
            return f"{type(error).__name__}: {first_line(error)[:200]}"


def prove(name: str, count: int, say: Callable[[str], None] = lambda line: None) -> Proof:
    """Prove one network.

    Args:
        name: As `model.backbone`.
        count: Patterns a granularity whose cost is compared.
        say: Called with a line for each finding, as it is found.
    """
    start = time.perf_counter()
    graph = import_backbone(name, SIZE).graph
    import_s = time.perf_counter() - start
    torch.manual_seed(0)
    image = torch.randn(4, 3, *SIZE)
    gap32, gap64, budgets = {}, {}, {}
    formula, ends, done = True, True, 0
    encoder = Encoder(graph)
    costs = [gs.count_macs(encoder, SHAPE)]
    del encoder
    onnx: float | str = "not written"
    pt2: float | str = "not written"
    for kind in granularities(graph):
        model = GatedSupernet(parts_of_graph(graph), granularity=kind)
        scatter(model, image)
        cost = PatternCost.of(model, SHAPE)
        drawn = patterns(model, len(kind))
        compared = [next(drawn) for _ in range(COMPARED)]
        gap32[kind] = largest_gap(model, compared, image, torch.float32)
        gap64[kind] = largest_gap(model, compared, image, torch.float64)
        say(f"{name} {kind}: differences {gap32[kind]:.1e}, {gap64[kind]:.1e}")
        if kind == "conv":
            costs.append(counted(model, compared[0], cross_check=True))
            model.set_gates(compared[0])
            compact = extract(model)
            onnx, pt2 = (exported(compact, form) for form in ("onnx", "pt2"))
            say(f"{name}: onnx {onnx}, pt2 {pt2}")
            del compact
        ends &= ends_equal(model, cost)
        budgets[kind] = budget_shares(model, cost)
        say(f"{name} {kind}: ends {ends}, budgets {budgets[kind]}")
        for _, pattern in zip(range(count), drawn, strict=False):
            figures = counted(model, pattern)
            formula &= by_formula(cost, pattern) == (figures.macs, figures.params)
            done += 1
        say(f"{name} {kind}: {count} patterns, formula {formula}")
    strange = [line for found in costs for line in (*found.disagreements, *found.uncounted)]
    return Proof(
        name, import_s, len(graph.nodes), done, gap32, gap64, formula, ends, budgets, onnx, pt2,
        tuple(strange),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imported")
    parser.add_argument("name", nargs="*", help=f"backbones; by default {', '.join(NETWORKS)}")
    parser.add_argument("--patterns", type=int, default=100, metavar="N",
                        help="patterns a granularity whose cost is compared")  # fmt: skip
    arguments = parser.parse_args()
    held = True
    print(HEADER, flush=True)
    for name in arguments.name or NETWORKS:
        try:
            proof = prove(name, arguments.patterns, lambda line: print(line, file=sys.stderr))
        except Exception as error:  # a row each, whatever fails
            print(f"| {name} | {type(error).__name__}: {first_line(error)} |", flush=True)
            held = False
            continue
        print(proof.row(), flush=True)
        held &= proof.holds
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
