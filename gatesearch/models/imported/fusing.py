"""Joins nodes that one node computes, and drops those that nothing reads."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn

from gatesearch.models.encoder import module_key
from gatesearch.models.imported.builder import Draft, is_free
from gatesearch.models.imported.calls import Site
from gatesearch.models.imported.constants import Constant
from gatesearch.models.nodes import Activation, Add, BatchNorm, Conv, Node, Route


def simplified(draft: Draft, outputs: Collection[str]) -> tuple[Draft, dict[str, str]]:
    """Return a draft with fewer nodes that computes the same.

    Convolutions take over the batch norm and ReLU behind them, sums their ReLU, routes the routes
    that they read.

    Args:
        draft: The nodes.
        outputs: Nodes that are read from outside.

    Returns:
        The draft, and new names of all nodes that others took over.
    """
    taken: dict[str, str] = {}
    readers = Counter(source for node in draft.nodes for source in node.sources)
    readers.update(outputs)
    nodes: dict[str, Node] = {}
    weights: dict[str, dict[str, Constant]] = {}
    modules: dict[str, set[str]] = {}
    sites: dict[str, Site] = {}
    for node in draft.nodes:
        node = reading(node, taken)
        found = nodes.get(node.sources[0]) if len(node.sources) == 1 else None
        fused = None
        if found is not None and readers[found.name] == 1:
            fused = _fused(found, node)
        if found is not None and fused is not None:
            nodes[found.name] = fused
            taken[node.name] = found.name
            readers[found.name] = readers[node.name]
            modules[found.name] |= draft.modules[node.name]
            if isinstance(node, BatchNorm):
                weights[found.name] |= {
                    f"bn.{name}": constant for name, constant in draft.weights[node.name].items()
                }
            continue
        if isinstance(node, Route):
            node = _composed(node, nodes)
        nodes[node.name] = node
        weights[node.name] = dict(draft.weights[node.name])
        modules[node.name] = set(draft.modules[node.name])
        sites[node.name] = draft.sites[node.name]
    alive = {taken.get(name, name) for name in outputs}
    kept: list[Node] = []
    for node in reversed(nodes.values()):
        if node.name in alive:
            alive.update(node.sources)
            kept.append(node)
    return Draft(kept[::-1], weights, sites, modules), taken


def reading(node: Node, names: Mapping[str, str]) -> Node:
    """Return a node that reads nodes of other names."""
    changed: dict[str, Any] = {}
    if isinstance(node, Route):
        changed["sources"] = tuple(names.get(source, source) for source in node.sources)
    else:
        for field in SOURCES:
            if (source := getattr(node, field, None)) in names:
                changed[field] = names[cast(str, source)]
    return cast(Node, replace(cast(Any, node), **changed)) if changed else node


# Fields of nodes that name a node.
SOURCES = ("source", "skip", "factor", "query", "key", "value")


def _fused(first: Node, second: Node) -> Node | None:
    """Return one node that computes both, if a kind of node does."""
    if isinstance(first, Conv) and not first.relu:
        if isinstance(second, BatchNorm) and not first.norm:
            return replace(first, norm=True)
        if isinstance(second, Activation) and (ceiling := _ceiling(second)) is not False:
            return replace(first, relu=True, ceiling=ceiling)
    if isinstance(first, Add) and not first.relu and isinstance(second, Activation):
        return replace(first, relu=True) if second.function == "relu" else None
    return None


def _ceiling(activation: Activation) -> float | bool | None:
    """Return the upper limit of a ReLU, None for none; False for another function."""
    if activation.function == "relu":
        return None
    if activation.function == "relu6":
        return 6.0
    if activation.function in ("hardtanh", "clamp") and len(activation.arguments) == 2:
        low, high = activation.arguments
        return high if low == 0 and high > 0 else False
    return False


def _composed(route: Route, nodes: Mapping[str, Node]) -> Route:
    """Return a route that reads what the routes before it read."""
    sources: list[str] = []
    channels: list[int] = []

    def place(name: str, count: int) -> int:
        if name not in sources:
            sources.append(name)
            channels.append(count)
        return sources.index(name)

    routes = []
    for source, channel in route.routes:
        name, count = route.sources[source], route.input_channels[source]
        before = nodes.get(name)
        if isinstance(before, Route):
            inner, channel = before.routes[channel]
            name, count = before.sources[inner], before.input_channels[inner]
        routes.append((place(name, count), channel))
    return replace(
        route, sources=tuple(sources), input_channels=tuple(channels), routes=tuple(routes)
    )


def renamed(draft: Draft, classes: Mapping[str, type[nn.Module]]) -> dict[str, str]:
    """Return new names for nodes that stand for all of an `nn.Sequential`: its path.

    Args:
        draft: The nodes.
        classes: Path of each module -> its class.
    """
    used = set().union(*draft.modules.values()) if draft.modules else set()
    keys = {module_key(node.name) for node in draft.nodes}
    names: dict[str, str] = {}
    for node in draft.nodes:
        parent = node.name.rpartition(".")[0]
        below = {path for path in used if path.startswith(f"{parent}.")}
        if (
            parent
            and isinstance(node, Conv)
            and issubclass(classes.get(parent, nn.Module), nn.Sequential)
            and below <= draft.modules[node.name]
            and is_free(parent, keys)
        ):
            names[node.name] = parent
            keys.add(module_key(parent))
    return names


def with_names(draft: Draft, names: Mapping[str, str]) -> Draft:
    """Return a draft whose nodes have other names."""

    def new(name: str) -> str:
        return names.get(name, name)

    nodes = [
        cast(Node, replace(cast(Any, reading(node, names)), name=new(node.name)))
        for node in draft.nodes
    ]
    return Draft(
        nodes,
        {new(name): weights for name, weights in draft.weights.items()},
        {new(name): site for name, site in draft.sites.items()},
        {new(name): modules for name, modules in draft.modules.items()},
    )
