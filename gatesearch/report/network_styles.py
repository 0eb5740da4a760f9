"""The colour, marker and line of each network, the same on all pages of a report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from matplotlib.colors import LinearSegmentedColormap, to_hex

from gatesearch.report.record_queries import baseline_groups, display_name, front_groups
from gatesearch.report.style import INK
from gatesearch.results import StudyRecord

# Methods that most studies have look the same in all reports.
_FIXED = {
    "stl": (INK, "s"),
    "mtl": ("#c2571a", "D"),
    "cross_stitch": ("#3056a0", "^"),
    "mtan": ("#7a3e9d", "v"),
}
# No two alike, and none like the green of trials.
COLOURS = (
    "#b0204f", "#0086c8", "#8a6d00", "#e377c2", "#6b3a1e", "#555f6b", "#e8a33d", "#9a9fe0",
    "#d62728", "#9c8f7a",
)  # fmt: skip
MARKERS = ("P", "X", "<", ">", "p", "h", "*")
Dash = Literal["", "-", "--", ":", "-."]
DASHES: tuple[Dash, ...] = ("--", ":", "-.")
_FRONT = LinearSegmentedColormap.from_list("front", ["#8fd0c5", "#0b7a75", "#06302f"])


@dataclass(frozen=True)
class NetworkStyle:
    """How a network is drawn.

    Attributes:
        colour: Of its marker and line.
        marker: matplotlib's letter.
        dash: matplotlib's line style.
    """

    colour: str
    marker: str
    dash: Dash


def network_styles(record: StudyRecord) -> Mapping[str, NetworkStyle]:
    """Choose the style of every complete baseline and of the front's networks, by label.

    Baselines have dashed lines. The front's networks are green, darker the more they cost; where
    several methods were searched, those of every other one have the colour of its baseline.
    """
    styles: dict[str, NetworkStyle] = {}
    of_method: dict[str, NetworkStyle] = {}  # which all its widths have
    count = 0
    for group in baseline_groups(record):
        if group.style_key in of_method:
            styles[group.label] = of_method[group.style_key]
            continue
        if group.style_key in _FIXED:
            look = NetworkStyle(*_FIXED[group.style_key], "--")
            styles[group.label] = of_method[group.style_key] = look
            continue
        # Seven markers and ten colours have no common factor: 70 networks differ.
        styles[group.label] = of_method[group.style_key] = NetworkStyle(
            COLOURS[count % len(COLOURS)],
            MARKERS[count % len(MARKERS)],
            DASHES[count // len(COLOURS) % len(DASHES)],
        )
        count += 1
    groups = front_groups(record)
    for number, method in enumerate(record.fronts):
        chosen = [group for group in groups if group.style_key == method]
        baseline = styles.get(display_name(method))
        if number and baseline is None:
            baseline = NetworkStyle(COLOURS[count % len(COLOURS)], "o", "-")
            count += 1
        for i, group in enumerate(chosen):
            share = i / (len(chosen) - 1) if len(chosen) > 1 else 0.5
            green = to_hex(_FRONT(share))
            colour = baseline.colour if number and baseline is not None else green
            styles[group.label] = NetworkStyle(colour, "o", "-")
    return styles
