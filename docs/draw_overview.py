"""Draw docs/assets/overview.svg, the picture of the README: python docs/draw_overview.py.

Left, streams and gates as a scheme; right, the front of the sample report, from its stored figures.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "reports" / "sample" / "nyud-small.csv"
PICTURE = ROOT / "docs" / "assets" / "overview.svg"

INK, GREY, FAINT = "#17202a", "#8d99a6", "#d5dae0"
COLOURS = {"A": "#0b7a75", "shared": GREY, "B": "#c2571a"}
NAMES = {"stl": "single-task", "mtl": "multi-task", "mtan": "MTAN", "cross_stitch": "Cross-stitch"}

# Which of a layer's channels each task computes for itself, in three layers: its open gates.
CHANNELS = 6
OPEN = {"A": ({1}, {0, 2}, {0, 1, 3, 4}), "B": ({4}, {5}, {3, 4})}


def live(stream: str, layer: int) -> set[int]:
    """Return the channels that some prediction reads: a shared one unless all gates are open."""
    if stream != "shared":
        return OPEN[stream][layer]
    return set(range(CHANNELS)) - (OPEN["A"][layer] & OPEN["B"][layer])


def draw_streams(axes: Axes, *, left: float, pruned: bool) -> None:
    """Draw three layers of the two tasks' streams and of the shared one between them."""
    for layer in range(3):
        for row, stream in enumerate(COLOURS):
            for channel in range(CHANNELS):
                used = channel in live(stream, layer)
                if pruned and not used:
                    continue
                corner = (left + 1.25 * layer + 0.15 * channel, 2.2 - 1.05 * row)
                fill = COLOURS[stream] if used else "white"
                edge = COLOURS[stream] if used else FAINT
                axes.add_patch(Rectangle(corner, 0.11, 0.62, facecolor=fill, edgecolor=edge, lw=1))


def draw_scheme(axes: Axes) -> None:
    """Draw the supernet, and the network that is left of it."""
    axes.set(xlim=(-1.35, 8.6), ylim=(-0.75, 3.75))
    axes.axis("off")
    for row, (stream, colour) in enumerate(COLOURS.items()):
        words = stream if stream == "shared" else f"task {stream}'s own"
        axes.text(-0.15, 2.51 - 1.05 * row, words, color=colour, ha="right", va="center")
    draw_streams(axes, left=0, pruned=False)
    draw_streams(axes, left=4.85, pruned=True)
    axes.annotate("", (4.65, 1.46), (3.75, 1.46), arrowprops={"arrowstyle": "->", "color": INK})
    axes.text(4.2, 1.66, "cut", color=INK, ha="center")
    axes.text(0, 3.3, "gates choose, channel by channel,", color=INK, weight="bold")
    axes.text(4.85, 3.3, "and what they choose is the network", color=INK, weight="bold")
    for left in (0.0, 4.85):
        for layer in range(3):
            axes.text(left + 1.25 * layer + 0.43, -0.35, f"layer {layer + 1}", color=GREY,
                      ha="center", fontsize=8)  # fmt: skip


def draw_front(axes: Axes, rows: Sequence[dict[str, str]]) -> None:
    """Draw gain against cost: the trials of the front as a line, the baselines as points."""
    measured = [row for row in rows if row["delta_mtl.test"]]
    points = {
        NAMES.get(row["method"], row["trial"]): (float(row["gflops"]), float(row["delta_mtl.test"]))
        for row in measured
        if row["method"] in NAMES
    }
    front = sorted(
        (float(row["gflops"]), float(row["delta_mtl.test"]))
        for row in measured
        if row["front"] == "True"
    )
    axes.plot(*zip(*front, strict=True), "o-", color=COLOURS["A"], lw=1.8, ms=5)
    axes.text(front[1][0] + 0.02, front[1][1] - 0.45, "networks found", color=COLOURS["A"])
    for name, (x, y) in points.items():
        axes.plot(x, y, "s", color=INK, ms=5)
        side, shift = ("left", 0.02) if name == "multi-task" else ("right", -0.02)
        axes.text(x + shift, y, name, color=INK, ha=side, va="center", fontsize=9)
    axes.axhline(0, color=FAINT, lw=1, zorder=0)
    axes.set(xlim=(0.3, 1.0), ylim=(-0.5, 6.3), xlabel="GFLOPs per image")
    axes.set_title(
        "a search gives a front of them", color=INK, weight="bold", fontsize=10, loc="left"
    )
    axes.set_ylabel("gain over single-task, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY)


def main() -> None:
    """Draw the picture; the same figures give the same bytes."""
    matplotlib.rcParams |= {"svg.hashsalt": "gatesearch", "font.size": 10, "axes.edgecolor": GREY}
    with FIGURES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, (scheme, front) = plt.subplots(
        1, 2, figsize=(12, 3.6), width_ratios=(2.1, 1), layout="constrained"
    )
    draw_scheme(scheme)
    draw_front(front, rows)
    figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
