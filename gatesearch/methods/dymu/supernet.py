"""The controlled supernet: the trained single-task networks, steered by two hypernetworks.

The streams are N trained single-task networks, cut into blocks at the same places; they and their
heads are frozen (the paper's anchor network). Given preferences r and a cost weight c, the edge
hypernetwork says which stream's features each block and head reads, and the weight hypernetwork
shifts γ and β of every norm, those of the heads included.

While the edge hypernetwork learns, a block of stream i reads Σ_j d_ij y_j, a mix of all streams'
features by a Gumbel softmax d of its logits. Otherwise each block reads one stream, that of the
highest logit: the streams are a tree, and only the blocks that some head depends on are computed.
That tree has at most the multiply-adds of T - c (T - 1) of the T encoders, so that c = 1 is the
cost of a multi-task network: where the logits ask for more, streams are merged (`merged`), those
of tasks that matter little first. In the paper c acts by the regularisers alone; the bound is ours.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatesearch.cost.sizes import node_sizes
from gatesearch.methods.dymu.blocks import Norm, StreamBlock, blocks_of, channels_of, norms_of
from gatesearch.methods.dymu.draws import Draws
from gatesearch.methods.dymu.hypernetworks import EdgeHypernetwork, WeightHypernetwork
from gatesearch.methods.dymu.options import DymuOptions
from gatesearch.methods.dymu.tree import Limit, Scores, Tree, merged
from gatesearch.models import Parts
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.heads import Heads
from gatesearch.models.mixing import mixing_sum
from gatesearch.models.nodes import Size

# Path of a norm's weight or bias -> the shifted one.
Shifted = dict[str, Tensor]


class DymuNet(nn.Module):
    """The streams with their two hypernetworks.

    Args:
        parts: Encoders and heads, from trained single-task networks.
        options: Sizes of the hypernetworks, and what is drawn.

    Attributes:
        draws: Preferences, cost weight and noise of the current step; (r, c) of every pass.
        affinity: (L, T, T) affinity of tasks at each block.
        temperature: Of the Gumbel softmax in training; 0 for one tree in training too. Set before
            each step.
        mean_gflops: Mean GFLOPs of a forward pass over drawn (r, c), of the trees.
    """

    affinity: Tensor

    def __init__(self, parts: Parts, options: DymuOptions) -> None:
        super().__init__()
        self.tasks = parts.tasks
        # Without what is computed for heads that read several stages.
        self.graph = parts.graph.trunk()
        self.head_specs = dict(parts.heads)
        self.blocks = blocks_of(self.graph)
        self.streams = nn.ModuleDict({task: parts.encoder(task) for task in self.tasks})
        self.heads = parts.all_heads()
        self.temperature = options.temperature[0]
        self.mean_gflops = 0.0
        # Plain lists, so that the modules below are not named twice in the state dict.
        self._stream_blocks = [
            [StreamBlock(cast(Encoder, self.streams[task]), block) for task in self.tasks]
            for block in self.blocks
        ]
        self._head_calls = [HeadCall(self.heads, task) for task in self.tasks]
        tasks, blocks, width = len(self.tasks), len(self.blocks), options.embedding
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.seed)
            self.edges = EdgeHypernetwork(tasks=tasks, blocks=blocks, width=width)
            self.weights = WeightHypernetwork(
                tasks=tasks, channels=self._norm_channels(), width=width
            )
        self.draws = Draws(
            tasks=tasks, blocks=blocks, concentration=options.concentration, seed=parts.seed
        )
        self.register_buffer("affinity", torch.ones(blocks, tasks, tasks))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W), for the (r, c) of `draws`."""
        size = (image.shape[-2], image.shape[-1])
        if self.training and self.temperature > 0:
            return self._mixed(image, self.sampled_edges())
        return self.through(image, self.tree(self.draws.preference, self.draws.cost, size))

    def logits(self, preference: Tensor, cost: Tensor) -> Tensor:
        """Return the logits of all edges, (L, T readers, T streams)."""
        with _exact(preference):
            edges: Tensor = self.edges(preference, cost)
        return edges

    def sampled_edges(self) -> Tensor:
        """Return d, (L, T readers, T streams), from the logits and the noise of this step."""
        logits = self.logits(self.draws.preference, self.draws.cost)
        return ((logits + self.draws.noise) / self.temperature).softmax(2)

    @torch.no_grad()
    def scores(self, preference: Tensor, cost: Tensor) -> Scores:
        """Return the logits of all edges as plain numbers."""
        scores: Scores = self.logits(preference, cost).tolist()
        return scores

    def tree(self, preference: Tensor, cost: Tensor, size: Size) -> Tree:
        """Return the tree for (r, c) on images of `size`, within the bound that c sets."""
        scores = self.scores(preference, cost)
        macs = block_macs(self.graph, size)
        tasks = len(self.tasks)
        streams = tasks - float(cost) * (tasks - 1)
        # Rounded, so that c = 1 allows one stream.
        bound = Limit(macs, heads=0, most=round(streams * sum(macs)))
        return merged(Tree.best(scores), scores, [bound], preference=preference.tolist())

    def through(self, image: Tensor, tree: Tree) -> dict[str, Tensor]:
        """Predict by the blocks of a tree alone, with the shifts for the (r, c) of `draws`."""
        shifts = self.shifts(self.draws.preference, self.draws.cost, tree)
        features: dict[int, Tensor] = {}
        for block, nodes in enumerate(tree.nodes):
            sources = features
            features = {
                stream: self._block(
                    block,
                    stream,
                    sources[tree.parents[block - 1][stream]] if block else image,
                    shifts,
                )
                for stream in nodes
            }
        return self._predictions([features[stream] for stream in tree.parents[-1]], image, shifts)

    def anchor_features(self, image: Tensor) -> list[list[Tensor]]:
        """Compute the output of every block in every stream, none of which reads another's.

        Returns:
            [stream][block] -> (B, C, H, W), as the single-task networks compute them.
        """
        features: list[list[Tensor]] = []
        for stream in range(len(self.tasks)):
            x, outputs = image, []
            for row in self._stream_blocks:
                x = row[stream](x)
                outputs.append(x)
            features.append(outputs)
        return features

    def shifts(
        self, preference: Tensor, cost: Tensor, tree: Tree | None = None
    ) -> dict[int, Shifted]:
        """Compute the shifted γ and β of norms for (r, c).

        Args:
            preference: (T,) r.
            cost: c.
            tree: Only of its blocks, and of the heads; of all blocks when None.

        Returns:
            Item (`block_item`, `head_item`) -> path below its module -> shifted tensor.
        """
        tasks = range(len(self.tasks))
        nodes = [tasks] * len(self.blocks) if tree is None else tree.nodes
        items = [self.block_item(b, s) for b, streams in enumerate(nodes) for s in streams]
        items += [self.head_item(task) for task in tasks]
        with _exact(preference):
            deltas = self.weights(preference, cost, items)
            return {item: self._shifted(item, deltas.get(item)) for item in items}

    def block_item(self, block: int, stream: int) -> int:
        """Return the item of the weight hypernetwork that is a block of a stream."""
        return block * len(self.tasks) + stream

    def head_item(self, task: int) -> int:
        """Return the item of the weight hypernetwork that is the head of a task."""
        return len(self.blocks) * len(self.tasks) + task

    def _mixed(self, image: Tensor, edges: Tensor) -> dict[str, Tensor]:
        """Predict with every stream computed, and each reader's input mixed by `edges`."""
        shifts = self.shifts(self.draws.preference, self.draws.cost)
        tasks = range(len(self.tasks))
        inputs = [image for _ in tasks]
        for block, rows in enumerate(edges):
            outputs = [self._block(block, t, inputs[t], shifts) for t in tasks]
            inputs = [mixing_sum(outputs, row[:, None]) for row in rows]
        return self._predictions(inputs, image, shifts)

    def _block(self, block: int, stream: int, x: Tensor, shifts: dict[int, Shifted]) -> Tensor:
        module, shifted = self._stream_blocks[block][stream], shifts[self.block_item(block, stream)]
        return cast(Tensor, functional_call(module, shifted, (x,), tie_weights=False))

    def _predictions(
        self, features: Sequence[Tensor], image: Tensor, shifts: dict[int, Shifted]
    ) -> dict[str, Tensor]:
        return {
            task: functional_call(
                self._head_calls[t],
                shifts[self.head_item(t)],
                (features[t], image.shape[-2:]),
                tie_weights=False,
            )
            for t, task in enumerate(self.tasks)
        }

    def _norms(self, item: int) -> dict[str, Norm]:
        block, task = divmod(item, len(self.tasks))
        if block < len(self.blocks):
            return self._stream_blocks[block][task].norms()
        return norms_of(self._head_calls[task])

    def _norm_channels(self) -> list[int]:
        items = range((len(self.blocks) + 1) * len(self.tasks))
        return [sum(channels_of(n) for n in self._norms(item).values()) for item in items]

    def _shifted(self, item: int, delta: Tensor | None) -> Shifted:
        if delta is None:
            return {}
        shifted, start = {}, 0
        for path, norm in self._norms(item).items():
            part = slice(start, start + channels_of(norm))
            shifted[f"{path}.weight"] = cast(Tensor, norm.weight) + delta[0, part]
            shifted[f"{path}.bias"] = cast(Tensor, norm.bias) + delta[1, part]
            start += channels_of(norm)
        return shifted


class HeadCall(nn.Module):
    """A task's head, called on features and the size of the image."""

    def __init__(self, heads: Heads, task: str) -> None:
        super().__init__()
        self.only = Heads({task: heads[task]})
        self.task = task

    def forward(self, features: Tensor, size: Size) -> Tensor:
        """Compute the task's prediction."""
        return self.only.call_head(self.task, features, size)


@lru_cache(maxsize=32)
def block_macs(graph: Graph, size: Size) -> tuple[int, ...]:
    """Count the multiply-adds of each block in one stream, on an image of `size`."""
    sizes = node_sizes(graph, size)
    return tuple(
        sum(node.outputs * node.macs_per_channel(sizes) for node in block.nodes)
        for block in blocks_of(graph)
    )


def block_params(graph: Graph) -> tuple[int, ...]:
    """Count the parameters of each block in one stream."""
    return tuple(sum(node.params for node in block.nodes) for block in blocks_of(graph))


def _exact(tensor: Tensor) -> AbstractContextManager[object]:
    """Compute in the dtype of the tensors, whatever the precision of training."""
    if tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
