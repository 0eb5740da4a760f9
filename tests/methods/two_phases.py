"""A method in one file: weights first, then which shared features each task reads.

All tasks share one encoder. A task's head reads its features times a scale per channel. In the
first phase everything but the scales learns, on one half of the training part. In the second the
scales do, on the other half, drawn towards zero by an L1 penalty of a strength that a search
chooses; heads follow slowly. Then each task keeps the channels of its largest scales, these are
folded into the weights of its head, and the smaller network is trained on all frames.

It is no method of the package: `tests.methods.test_new_method` adds it with one line.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, training_of
from gatesearch.methods.ends import compact_of_all_gates
from gatesearch.methods.space import Range
from gatesearch.models import Parts, parts_of
from gatesearch.models.channel_source import ChannelSlice, channel_positions
from gatesearch.pruning import CompactNet, load_compact
from gatesearch.pruning.description import Description
from gatesearch.strict import Strict
from gatesearch.study import Study
from gatesearch.training import Hooks, ParameterGroup


class TwoPhaseOptions(Strict):
    """Options of the method.

    Attributes:
        keep: Share of the features that each task goes on to read.
        strength: Weight of the penalty where no search chooses it.
        rate: Learning rate of the scales, as a multiple of the study's.
    """

    keep: float = Field(default=0.5, gt=0, le=1)
    strength: float = Field(default=0.1, ge=0)
    rate: float = Field(default=10.0, gt=0)


class ScaledNet(nn.Module):
    """One encoder; each head reads its features times scales of the task's own."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder = parts.encoder()
        self.heads = parts.all_heads()
        self.scales = nn.ParameterDict({t: torch.ones(parts.graph.outputs) for t in parts.tasks})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        features = self.encoder(image)
        return {
            task: head(features * self.scales[task][:, None, None], image.shape[-2:])
            for task, head in self.heads.items()
        }


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Weights, scales, the compact network: a third of the epochs each."""
    study = request.study
    options, epochs = options_of(study, TWO_PHASES), training_of(study, TWO_PHASES).epochs
    first, second = epochs // 3, 2 * epochs // 3
    strength = float(request.spec.params.get("strength", options.strength))

    def build(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(ScaledNet(parts))

    def weights(module: nn.Module) -> list[ParameterGroup]:
        net = scaled(module)
        return [ParameterGroup((*net.encoder.parameters(), *net.heads.parameters()))]

    def scales(module: nn.Module) -> list[ParameterGroup]:
        net = scaled(module)
        own = tuple(net.scales.values())
        return [
            ParameterGroup(own, rate=options.rate, optimizer="sgd", weight_decay=0.0),
            ParameterGroup(tuple(net.heads.parameters()), rate=0.1),
        ]

    return [
        Phase(name="weights", span=(0, first), begin=build, groups=weights, data_part=(0, 2)),
        Phase(
            name="scales",
            span=(first, second),
            begin=same_network,
            hooks=lambda module: scale_hooks(scaled(module), strength),
            groups=scales,
            data_part=(1, 2),
        ),
        Phase(
            name="compact",
            span=(second, epochs),
            begin=lambda before: TrainedNetwork(thinned(before, study, keep=options.keep)),
            describe=describe,
            rebuild=lambda described: CompactNet(Description.model_validate(described)),
        ),
    ]


def scaled(module: nn.Module) -> ScaledNet:
    """The module as the network that it is."""
    assert isinstance(module, ScaledNet)
    return module


def same_network(before: TrainedNetwork | None) -> TrainedNetwork:
    """Go on with the network of the phase before."""
    assert before is not None
    return before


def scale_hooks(net: ScaledNet, strength: float) -> Hooks:
    """The penalty rises over the phase's first half; the mean scale is observed."""
    risen = 0.0

    def rise(share: float) -> None:
        nonlocal risen
        risen = min(1.0, 2 * share)

    def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        means = [scale.abs().mean() for scale in net.scales.values()]
        return strength * risen * torch.stack(means).sum()

    def observe(epoch: int) -> dict[str, float]:
        return {f"scale.{task}": float(s.detach().abs().mean()) for task, s in net.scales.items()}

    return Hooks(penalty=penalty, before_step=rise, observe=observe)


@torch.no_grad()
def thinned(before: TrainedNetwork | None, study: Study, *, keep: float) -> CompactNet:
    """The compact network in which each head reads the features of its largest scales."""
    assert before is not None
    net = scaled(before.module).cpu()
    whole = compact_of_all_gates(net, study, open_=False)
    assert isinstance(whole, CompactNet)
    state, heads = whole.state_dict(), {}
    for task, head in whole.description.heads.items():
        scale = net.scales[task]
        count = max(1, round(keep * len(scale)))
        kept = scale.abs().topk(count).indices.sort().values
        chosen = [channel_positions(head.source)[i] for i in kept.tolist()]
        source = tuple(
            ChannelSlice(tensor=tensor, channels=tuple(channel for _, channel in run))
            for tensor, run in groupby(chosen, key=lambda place: place[0])
        )
        heads[task] = head.model_copy(update={"source": source, "inputs": count})
        smaller = heads_state(heads[task])
        for name, shape in smaller.items():
            key = f"heads.{task}.{name}"
            if state[key].shape != shape:  # weights that read the features
                state[key] = (state[key] * scale[:, None, None])[:, kept]
    compact = CompactNet(whole.description.model_copy(update={"heads": heads}))
    compact.load_state_dict(state)
    return compact


def heads_state(head) -> dict[str, torch.Size]:
    """Shapes of a head's tensors."""
    from gatesearch.models.model_factory import HeadSpec

    built = HeadSpec(head.kind, head.inputs, head.channels, head.outputs).build()
    return {name: tensor.shape for name, tensor in built.state_dict().items()}


def describe(module: nn.Module) -> Mapping[str, object]:
    """What rebuilds a compact network."""
    assert isinstance(module, CompactNet)
    return module.description.model_dump(mode="json")


TWO_PHASES = Method(
    name="two_phases",
    paper="(a test)",
    year=2026,
    summary="one encoder, of whose features each task reads the ones that it needs",
    build=lambda parts, options: ScaledNet(parts),
    options=TwoPhaseOptions,
    phases=phases,
    space={"strength": Range(0.01, 1.0, log=True)},
    default_trials=2,
    read=load_compact,
)
