"""Encoders and heads that every method is built from, initialised alike for all methods."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.heads import HEADS, Feature, Heads, reads_stages


def features_of(graph: Graph) -> tuple[Feature, ...]:
    """List the maps of an encoder that heads may read, the last one last."""
    features = zip(graph.features, graph.strides, strict=True)
    return tuple(Feature(graph.channels(name), stride) for name, stride in features)


def features_for(graph: Graph, head: object) -> tuple[Feature, ...]:
    """List the maps that a head, or what builds it, reads; none if it reads the last one alone."""
    return features_of(graph) if reads_stages(head) else ()


@dataclass(frozen=True)
class HeadSpec:
    """A head as plain numbers, from which a saved network rebuilds it.

    Attributes:
        kind: A name in `HEADS`.
        inputs: Channels of the last map.
        channels: Channels inside the head.
        outputs: Channels of its prediction.
        features: Every map that it reads; empty for a head that reads the last one alone.
    """

    kind: str
    inputs: int
    channels: int
    outputs: int
    features: tuple[Feature, ...] = ()

    def build(self) -> nn.Module:
        """Build the head with fresh weights."""
        return HEADS[self.kind](self.features or self.inputs, self.channels, self.outputs)


# Kind of heads that are a user's modules. No saved network can rebuild them by itself.
OWN = "own"


@dataclass(frozen=True, eq=False)
class OwnHead:
    """A head that is a module of the user's, whatever its class.

    Attributes:
        module: The head, called as `gatesearch.models.heads.takes_size` says.
        inputs: Channels of the last map.
        features: As for `HeadSpec`.
    """

    module: nn.Module
    inputs: int
    features: tuple[Feature, ...] = ()
    kind: str = OWN
    channels: None = None
    outputs: None = None

    def build(self) -> nn.Module:
        """Return the module itself, with the weights that it has."""
        return self.module


def nodes_read(
    graph: Graph, heads: Mapping[str, HeadSpec | OwnHead]
) -> tuple[tuple[str, ...], ...]:
    """Name, for each head in order, the nodes of an encoder that it reads."""
    return tuple(graph.read_by(bool(spec.features)) for spec in heads.values())


@dataclass(frozen=True)
class Parts:
    """Encoders and heads for a method to assemble.

    All encoders get the same initial weights, whatever the method and the order of calls, and the
    initial weights of a task's head depend on the seed and the task's index alone. Methods differ
    in nothing but sharing.

    Attributes:
        graph: The encoder's graph.
        heads: Task -> head.
        seed: Seed of the initial weights.
        pretrained: Encoder weights to start from instead of random ones.
        stl: State dict of trained single-task networks (`gatesearch.methods.stl`) to start from:
            the encoder of one task takes that task's weights, a shared one the mean over tasks.
    """

    graph: Graph
    heads: Mapping[str, HeadSpec | OwnHead]
    seed: int = 0
    pretrained: Mapping[str, Tensor] | None = None
    stl: Mapping[str, Tensor] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.heads)

    @property
    def nodes(self) -> tuple[tuple[str, ...], ...]:
        """For each task, the nodes that its head reads."""
        return nodes_read(self.graph, self.heads)

    def encoder(self, task: str | None = None) -> Encoder:
        """Build an encoder for one task, or for all of them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = Encoder(self.graph)
        if self.stl is not None:
            tasks = [task] if task else list(self.tasks)
            states = [below(self.stl, f"encoders.{name}.") for name in tasks]
            encoder.load_state_dict(
                {name: _mean([state[name] for state in states]) for name in states[0]}
            )
        elif self.pretrained is not None:
            encoder.load_state_dict(self.pretrained)
        return encoder

    def head(self, task: str) -> nn.Module:
        """Build the head of one task."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1009 + 1 + self.tasks.index(task)) % 2**64)
            head = self.heads[task].build()
        if self.stl is not None:
            head.load_state_dict(below(self.stl, f"heads.{task}."))
        return head

    def all_heads(self) -> Heads:
        """Build every task's head."""
        return Heads({task: self.head(task) for task in self.tasks})


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries of a state dict whose names begin with `prefix`, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _mean(tensors: list[Tensor]) -> Tensor:
    if len(tensors) == 1 or not tensors[0].is_floating_point():
        return copy.deepcopy(tensors[0])
    return torch.stack(tensors).mean(0)
