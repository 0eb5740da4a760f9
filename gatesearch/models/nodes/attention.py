"""Scaled dot-product attention with heads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gatesearch.models.channel_ops import Read, Tensors
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.layer import LayerSlice
from gatesearch.models.nodes.node import Grouped, Size, scaled_channels
from gatesearch.models.nodes.step import Ids, Step, StepName, StepWeights
from gatesearch.strict import Strict

# Most rows of a table of biases, most tokens it is read for, and most windows in a file.
MOST_ROWS, MOST_TOKENS, MOST_WINDOWS = 2**16, 4096, 2**16

Row = Annotated[int, Field(ge=0, lt=MOST_ROWS)]
Region = Annotated[int, Field(ge=0, lt=MOST_WINDOWS * MOST_TOKENS)]


class PositionBias(Strict):
    """What is added to scores by the positions of query and key.

    Attributes:
        rows: Rows of a table that each head learns.
        index: (N, M) row that query i adds to its score of key j.
        regions: (windows, N) region of each token, or None. Tokens of shifted windows lie on
            several edges of the image; those of different regions get `masked` added.
        masked: A term that hides a key.
    """

    rows: int = Field(ge=1, le=MOST_ROWS)
    index: tuple[tuple[Row, ...], ...] = Field(min_length=1, max_length=MOST_TOKENS)
    regions: tuple[tuple[Region, ...], ...] | None = Field(
        default=None, min_length=1, max_length=MOST_WINDOWS
    )
    masked: float = Field(default=-100.0, lt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _even_rows(self) -> Self:
        tokens = len(self.index)
        if len({len(row) for row in self.index}) > 1 or not self.index[0]:
            raise ValueError("must have rows of equal length in the index of a bias")
        if max(map(max, self.index)) >= self.rows:
            raise ValueError(f"must read one of {self.rows} rows of biases")
        for row in self.regions or ():
            if len(row) != tokens or len(self.index[0]) != tokens:
                raise ValueError(f"must have regions of {tokens} tokens, found {len(row)}")
        return self


@dataclass(frozen=True)
class Attention(Grouped):
    """softmax(s q kᵀ + bias) v in every head (Vaswani et al., 2017, 1706.03762, section 3.2.1).

    Queries are (B, heads·D, *windows, N), keys and values (B, heads·D, *windows, M); tokens see
    those of their own window.

    Attributes:
        query: Node of the queries.
        key: Node of the keys.
        value: Node of the values.
        outputs: heads·D.
        heads: Number of heads.
        scale: s; None for 1/√D.
        bias: Bias by position, which each stream learns.
    """

    name: str
    query: str
    key: str
    value: str
    outputs: int
    heads: int
    scale: float | None = None
    bias: PositionBias | None = None
    stage: int = field(default=0, kw_only=True)
    ends_block: bool = field(default=False, kw_only=True)
    stride: ClassVar[int] = 1
    whole_groups: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[str, ...]:
        """Queries, keys and values."""
        return (self.query, self.key, self.value)

    @property
    def input_channels(self) -> tuple[int, ...]:
        """As many in each as there are outputs."""
        return (self.outputs,) * 3

    @property
    def groups(self) -> int:
        """Each head is a group."""
        return self.heads

    @property
    def has_weights(self) -> bool:
        """Whether it has a table of biases."""
        return self.bias is not None

    @property
    def params_per_channel(self) -> Fraction:
        """The share of a head's column of the table."""
        return Fraction(self.bias.rows * self.heads if self.bias else 0, self.outputs)

    def macs_per_channel(self, sizes: Mapping[str, Size]) -> int:
        """Scores, and their products with the values: one each for every pair of tokens."""
        return 2 * math.prod(sizes[self.query]) * sizes[self.key][-1]

    def output_size(self, sizes: Mapping[str, Size]) -> Size:
        """That of the queries."""
        return sizes[self.query]

    def build(self) -> "BiasTable | None":
        """Build the table of biases, normal of deviation 0.02; nothing without one."""
        return None if self.bias is None else BiasTable(self.bias, self.heads, self.outputs)

    def run(self, inputs: Sequence[Tensor], layer: nn.Module | None) -> Tensor:
        """Attend."""
        mask = None if layer is None else layer()
        return attention(*inputs, heads=self.heads, scale=self._scale, mask=mask)

    def scaled(self, width: float) -> Self:
        """Return it with as many heads, of D times `width` channels."""
        return replace(self, outputs=scaled_channels(self.outputs, width))

    def narrowed(self, outputs: int) -> Self:
        """Return it with fewer heads, or one smaller one if no number fits."""
        size = self.outputs // self.heads
        return replace(self, outputs=outputs, heads=outputs // size if outputs % size == 0 else 1)

    def anonymous(self) -> Self:
        """Return it without names and place in the graph."""
        return replace(self, name="", query="", key="", value="", stage=0, ends_block=False)

    def step(self, *, name: str, sources: Sequence[ChannelSource], outputs: int) -> "AttentionStep":
        """Return the attention of some heads, of one stream or of several."""
        query, key, value = sources
        return AttentionStep(
            name=None if self.bias is None else name,
            query=query,
            key=key,
            value=value,
            heads=outputs * self.heads // self.outputs,
            scale=self._scale,
            bias=self.bias,
        )

    @property
    def _scale(self) -> float:
        return (self.outputs // self.heads) ** -0.5 if self.scale is None else self.scale


class AttentionStep(Step):
    """Attention of some heads, of one stream or of several, in a compact network.

    Attributes:
        name: Of its table of biases; None without one.
    """

    op: Literal["attention"] = "attention"
    whole_groups: ClassVar[bool] = True
    name: StepName | None = None
    query: ChannelSource
    key: ChannelSource
    value: ChannelSource
    heads: int = Field(ge=1)
    scale: float = Field(allow_inf_nan=False)
    bias: PositionBias | None = None

    @property
    def sources(self) -> tuple[ChannelSource, ...]:
        """Queries, keys and values."""
        return (self.query, self.key, self.value)

    @property
    def width(self) -> int:
        """As many channels as there are values."""
        return channel_count(self.value)

    @property
    def channel_groups(self) -> int:
        """Each head is a group."""
        return self.heads

    def narrowed(self, *, sources: Sequence[ChannelSource], outputs: Ids) -> Self:
        """Return the attention of some heads."""
        query, key, value = sources
        heads = self.heads * len(outputs) // self.width
        return self.model_copy(update={"query": query, "key": key, "value": value, "heads": heads})

    def check(self, widths: Sequence[int]) -> None:
        """Refuse uneven heads and tables, and a table without a name, also; see `Step.check`."""
        super().check(widths)
        counts = [channel_count(source) for source in self.sources]
        if len(set(counts)) > 1 or counts[0] % self.heads:
            raise ValueError(
                f"must have {self.heads} heads of equal size in queries, keys and values, found "
                f"{counts} channels"
            )
        if (self.name is None) != (self.bias is None):
            raise ValueError("must have a name if it has a bias, and none if not")

    def add_weights(self, weights: StepWeights) -> None:
        """Add a `BiasTable`, if it has one."""
        if self.name is not None and self.bias is not None:
            weights.layers[self.name] = BiasTable(self.bias, self.heads, self.width)

    def run(self, tensors: Tensors, readers: Sequence[Read], weights: StepWeights) -> Tensor:
        """Attend."""
        mask = None if self.name is None else cast(Tensor, weights.layers[self.name]())
        query, key, value = (read(tensors) for read in readers)
        return attention(query, key, value, heads=self.heads, scale=self.scale, mask=mask)


class BiasTable(nn.Module):
    """The table (rows, heads) of a `PositionBias`.

    Args:
        bias: What the table is read for.
        heads: Columns.
        channels: Of all heads together.
    """

    def __init__(self, bias: PositionBias, heads: int, channels: int) -> None:
        super().__init__()
        self.head_size = channels // heads
        self.table = nn.Parameter(torch.empty(bias.rows, heads))
        if not self.table.is_meta:
            nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", torch.tensor(bias.index), persistent=False)
        hidden = None
        if bias.regions is not None:
            labels = torch.tensor(bias.regions)
            differ = labels[:, None, :, None] != labels[:, None, None, :]
            hidden = differ * torch.tensor(bias.masked)
        self.register_buffer("hidden", hidden, persistent=False)

    def forward(self) -> Tensor:
        """Read the bias, (heads, N, M), or (windows, heads, N, M) with regions."""
        index, hidden = self.get_buffer("index"), self.hidden
        rows = self.table.index_select(0, index.flatten())
        bias = rows.view(*index.shape, -1).permute(2, 0, 1)
        return bias if hidden is None else bias + cast(Tensor, hidden)

    def copy_channels(self, slices: Sequence[LayerSlice]) -> None:
        """Take over the columns of whole heads of other tables, one slice after the other."""
        columns = []
        for part in slices:
            larger = cast(BiasTable, part.layer)
            heads = part.outputs[:: larger.head_size] // larger.head_size
            columns.append(larger.table[:, heads])
        self.table.copy_(torch.cat(columns, 1))


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, scale: float, mask: Tensor | None
) -> Tensor:
    """Compute attention, (B, C, *windows, N), in channels-last memory.

    Args:
        query: (B, C, *windows, N).
        key: (B, C, *windows, M).
        value: (B, C, *windows, M).
        heads: Equal runs of the C channels.
        scale: Factor of the scores.
        mask: Added to the scores: (heads, N, M), or (windows, heads, N, M).
    """
    batch, *windows, tokens = query.shape[0], *query.shape[2:]
    q, k, v = (_in_heads(x, heads) for x in (query, key, value))
    if mask is None or mask.dim() == 3:
        q, k, v = (x.flatten(0, -4) for x in (q, k, v))  # windows count as images
    else:
        q, k, v = (x.flatten(1, -3) for x in (q, k, v))  # windows count as heads
        mask = mask.flatten(0, 1)
    mask = None if mask is None else mask.to(q.dtype)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    rows = attended.view(batch, *windows, heads, tokens, -1).transpose(-3, -2).flatten(-2)
    return rows.movedim(-1, 1)


def _in_heads(x: Tensor, heads: int) -> Tensor:
    """(B, heads·D, *windows, N) -> (B, *windows, heads, N, D)."""
    return x.movedim(1, -1).unflatten(-1, (heads, -1)).transpose(-3, -2)
