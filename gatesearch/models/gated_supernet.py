"""The InterroGate supernet (Bejnordi et al., 2024, https://arxiv.org/abs/2402.16848).

T task streams φ_t and a shared stream ψ over one graph. Behind every gated node l

    φ'_t[l] = G_t[l] φ_t[l] + (1 - G_t[l]) ψ[l]              per channel        (equation 2)
    ψ'[l]   = Σ_t softmax_t(β_t[l]) φ'_t[l]                  per channel        (equation 3)

and each stream continues from its primed features; with the option `mix = "shared"` the shared one
continues from itself, ψ'[l] = ψ[l] (ours). Where the paper leaves a choice open, it is an option of
the study (`interrogate.*`). Three choices are fixed: every stream has its own batch
norms, every channel its own β, and the features that enter the heads are gated too (otherwise the
cost of MTL could never be reached).
"""

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.channel_units import per_channel, per_unit, unit_count, unit_index
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.gated_linear import linear_gate_and_mix
from gatesearch.models.gated_norm import gate_and_mix, norm_gate_and_mix
from gatesearch.models.gates import ESTIMATORS, hard
from gatesearch.models.graph import Graph, execute
from gatesearch.models.model_factory import Parts, below
from gatesearch.models.nodes import INPUT, Node
from gatesearch.models.nodes.drop_path import DropPathLayer, dropped_alike
from gatesearch.models.nodes.linear import LinearLayer


class GatedSupernet(nn.Module):
    """T task streams and a shared one, with gates between them.

    All streams start from equal weights (`Parts`), so that at first a gate changes nothing.

    Args:
        parts: Encoders and heads.
        granularity: `conv`, `block` or `head` (see `Graph.gated`).
        estimator: A name in `ESTIMATORS`.
        initial: σ(α) that all gates start from.
        mix: What the shared stream continues from: `tasks` = the β mix of equation 3, `shared` =
            its own features.

    Attributes:
        mixed: Gated nodes whose β mix some gate pattern reads; none with `mix = "shared"`.
        continued: With `mix = "shared"`, gated nodes behind which the shared stream is read on.
        units: Gated node -> (C,) number of the gate of each channel.
        alpha: Node -> (T, U) logits of the gates; U is C except where channels share a gate.
        beta: Node -> (T, C) logits of the mix.
        temperature: Temperature of the estimators that have one; the training loop anneals it.
        threshold: (T, 1) value that α must exceed for a gate to be open; 0 except in a supernet of
            nested patterns.

    Methods return and take a value for each channel (T, C) also where channels share a gate.

    The state dict holds temperature (as `_extra_state`) and threshold too. Where it was made before
    it held them, a supernet that loads it keeps its own.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        granularity: str = "conv",
        estimator: str = "ste",
        initial: float = 0.5,
        mix: Literal["tasks", "shared"] = "tasks",
    ) -> None:
        super().__init__()
        self.mix = mix
        self.tasks = parts.tasks
        self.graph = parts.graph
        self.head_specs = dict(parts.heads)
        self.estimator = estimator
        self.temperature = 1.0
        self.register_buffer("threshold", torch.zeros(len(self.tasks), 1))
        self.register_load_state_dict_pre_hook(_fill_in_gate_state)
        self.units = parts.graph.gate_units(granularity)
        self.gated = tuple(self.units)
        read_on = shared_nodes(parts.graph, self.gated)
        self.mixed = read_on if mix == "tasks" else ()
        self.continued = read_on if mix == "shared" else ()
        self.streams = nn.ModuleDict(
            {**{task: parts.encoder(task) for task in self.tasks}, SHARED: parts.encoder()}
        )
        self.heads = parts.all_heads()
        channels = {node.name: node.outputs for node in parts.graph}
        # σ(0) = 1/2 counts as closed; slightly above it all gates start open.
        logit = math.log(initial / (1 - initial)) or 1e-3
        tasks = len(self.tasks)
        gates = {name: unit_count(self.units, name, channels[name]) for name in self.gated}
        self.alpha = nn.ParameterDict(
            {module_key(name): torch.full((tasks, count), logit) for name, count in gates.items()}
        )
        for name in self.gated:
            self.register_buffer(_index_name(name), unit_index(self.units, name), persistent=False)
        self.beta = nn.ParameterDict(
            {module_key(name): torch.zeros(tasks, channels[name]) for name in self.mixed}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        read = self.heads.nodes(self.graph)
        start: dict[str, list[Tensor | None]] = {INPUT: [image] * (len(self.tasks) + 1)}
        values = execute(self.graph.nodes, start, self._evaluate, keep=read)
        # Per feature (T+1 maps).
        features = [cast(list[Tensor], values[name]) for name in read]
        return {
            task: self.heads.call_head(task, [maps[t] for maps in features], image.shape[-2:])
            for t, task in enumerate(self.tasks)
        }

    def get_extra_state(self) -> Tensor:
        """Return the temperature, which is in the state dict but on no device."""
        return torch.tensor(self.temperature, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the temperature."""
        self.temperature = float(state)

    def _evaluate(self, node: Node, inputs: list[list[Tensor | None]]) -> list[Tensor | None]:
        """Compute a node in every stream; None in the shared one where nothing reads it."""
        encoders = [cast(Encoder, stream) for stream in self.streams.values()]
        fused = node.name in self.gated and node.name not in self.continued
        if fused and node.ends_in_norm:
            layers = [cast(ConvNorm, encoder.layer(node.name)) for encoder in encoders]
            sources = cast(list[Tensor], inputs[0])
            outputs = [layer.convolved(x) for layer, x in zip(layers, sources, strict=True)]
            norms = [layer.bn for layer in layers]
            gated, shared = norm_gate_and_mix(
                outputs, norms, *self._gate(node.name), layers[0].relu, layers[0].ceiling
            )
            return [*gated, shared]
        if fused and node.is_linear and torch.is_grad_enabled():
            linears = [cast(LinearLayer, encoder.layer(node.name)).linear for encoder in encoders]
            sources = cast(list[Tensor], inputs[0])
            gated, shared = linear_gate_and_mix(sources, linears, *self._gate(node.name))
            return [*gated, shared]
        if node.drops_images:
            layer = cast(DropPathLayer, encoders[0].layer(node.name))
            values = dropped_alike(layer, inputs[0])
        else:
            values = [
                None
                if any(x is None for x in xs)
                else encoder.apply_node(node, cast(list[Tensor], xs))
                for encoder, *xs in zip(encoders, *inputs, strict=True)
            ]
        if node.name not in self.gated:
            return values
        gated, shared = gate_and_mix(cast(list[Tensor], values), *self._gate(node.name))
        return [*gated, values[-1] if node.name in self.continued else shared]

    def _gate(self, name: str) -> tuple[Tensor, Tensor | None]:
        mix = self.beta[module_key(name)].softmax(0) if name in self.mixed else None
        return self.gates(name), mix

    def clone_streams(self, mtl: Mapping[str, Tensor]) -> None:
        """Start every stream and head from the state of a multi-task network.

        All streams then compute the same features, so that at first a gate changes nothing.
        """
        for stream in self.streams.values():
            stream.load_state_dict(below(mtl, "encoder."))
        for task, head in self.heads.items():
            head.load_state_dict(below(mtl, f"heads.{task}."))

    def take_streams(self, stl: Mapping[str, Tensor]) -> None:
        """Start every task's stream and head from the state of single-task networks."""
        for task in self.tasks:
            self.streams[task].load_state_dict(below(stl, f"encoders.{task}."))
            self.heads[task].load_state_dict(below(stl, f"heads.{task}."))

    def gates(self, name: str) -> Tensor:
        """Return G of a gated node, (T, C): the estimator's in training, hard in evaluation."""
        alpha = self._unit_logits(name)
        estimated = hard(alpha)
        if self.training:
            estimated = ESTIMATORS[self.estimator].gate(alpha, self.temperature)
        return per_channel(estimated, self._index(name))

    def logits(self) -> dict[str, Tensor]:
        """Return gated node -> (T, C) α, less the threshold."""
        return {
            name: per_channel(self._unit_logits(name), self._index(name)) for name in self.gated
        }

    def _unit_logits(self, name: str) -> Tensor:
        return self.alpha[module_key(name)] - self.get_buffer("threshold")

    def _index(self, name: str) -> Tensor | None:
        """(C,) the gate of each channel; None where each has its own."""
        return self._buffers[_index_name(name)]

    def open_probability(self) -> dict[str, Tensor]:
        """Return gated node -> (T, C) probability that a gate is open (see `Estimator`)."""
        probability = ESTIMATORS[self.estimator].open_probability
        return {name: probability(alpha, self.temperature) for name, alpha in self.logits().items()}

    def hard_gates(self) -> dict[str, Tensor]:
        """Return gated node -> (T, C) bool, True where a task has a channel of its own."""
        return {name: (alpha > 0).detach().cpu() for name, alpha in self.logits().items()}

    def set_gates(self, gates: Mapping[str, Tensor]) -> None:
        """Set the hard gates to a pattern, node -> (T, C) bool.

        Raises:
            UsageError: Channels that share a gate differ in the pattern.
        """
        signs = {}
        for name, on in gates.items():
            index = self._index(name)
            of_channels = on.to(index.device if index is not None else on.device, torch.float32)
            of_units = per_unit(of_channels, index)
            if index is not None and not torch.equal(per_channel(of_units, index), of_channels):
                raise UsageError(
                    f"channels that share a gate must be all open or all closed, found node {name} "
                    "with open and closed ones in one unit; see `units` for which belong together"
                )
            signs[name] = of_units * 2 - 1
        with torch.no_grad():
            self.get_buffer("threshold").zero_()
            for name, sign in signs.items():
                self.alpha[module_key(name)].copy_(sign)

    def open_shares(self, shares: Tensor) -> None:
        """Open a share of each task's gates, those with the highest α.

        Patterns of growing shares are nested: an open gate stays open. Where channels share a gate
        the share is one of channels, and a gate that would open for only some of them stays closed.

        Args:
            shares: (T,) in [0, 1].
        """
        with torch.no_grad():
            alpha = torch.cat(
                [per_channel(self.alpha[module_key(n)], self._index(n)) for n in self.gated], 1
            )
            ordered = alpha.sort(1, descending=True).values
            # One value more at either end, so that none or all can be open.
            ordered = torch.cat([ordered[:, :1] + 2, ordered, ordered[:, -1:] - 2], 1)
            count = (shares.to(alpha) * alpha.shape[1]).round().long()[:, None]
            above, below = ordered.gather(1, count), ordered.gather(1, count + 1)
            self.get_buffer("threshold").copy_((above + below) / 2)

    def plain(self, image: Tensor, *, own: bool) -> dict[str, Tensor]:
        """Predict with all gates open (`own`) or closed, computing no other stream."""
        size, call, nodes = image.shape[-2:], self.heads.call_head, self.heads.nodes
        streams = {name: cast(Encoder, stream) for name, stream in self.streams.items()}
        if own:
            return {
                task: call(task, streams[task].features(image, nodes(self.graph, task)), size)
                for task in self.tasks
            }
        features = streams[SHARED].features(image, nodes(self.graph))
        return {task: call(task, features, size) for task in self.tasks}

    def open_share(self) -> Tensor:
        """Return 1/L Σ_l mean_c P_t[l] of every task, (T,), which `sparsity` bounds."""
        return torch.stack([p.mean(1) for p in self.open_probability().values()]).mean(0)

    def sparsity(self, tau: Tensor) -> Tensor:
        """Return L_sparsity = 1/T Σ_t max(0, 1/L Σ_l mean_c P_t[l] - τ_t).

        P is `open_probability`: σ(α) as in the paper, except for `hard_concrete`.

        Args:
            tau: (T,) hinge targets in [0, 1].
        """
        return (self.open_share() - tau).clamp(min=0).mean()


def _fill_in_gate_state(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: object
) -> None:
    """Fill in temperature and threshold of a state dict that was made before it held them."""
    supernet = cast(GatedSupernet, module)
    state.setdefault(f"{prefix}threshold", supernet.get_buffer("threshold"))
    state.setdefault(f"{prefix}_extra_state", supernet.get_extra_state())


def _index_name(name: str) -> str:
    return f"unit_of_{module_key(name)}"


SHARED = "_shared"


def shared_nodes(graph: Graph, gated: tuple[str, ...]) -> tuple[str, ...]:
    """Return the gated nodes behind which some gate pattern reads the shared stream.

    Tasks can read the shared stream at a gated node; at another node only the shared stream further
    down reads it. So nothing reads it behind the last gates.
    """
    read: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in gated or node.name in read:
            read.update(node.sources)
    return tuple(name for name in gated if name in read)
