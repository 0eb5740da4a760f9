"""Colours, formats of numbers, and ticks of axes that all pages of the report share."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axis import Axis, XAxis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import Formatter, Locator, MaxNLocator, NullFormatter, NullLocator

from gatesearch.report.text import SANS

INK, MUTED, FAINT, PAPER = "#16202b", "#64707d", "#d5dae0", "#f4f6f8"
ACCENT, ALARM = "#0b7a75", "#b42318"
OTHERS = "#c0c4c9"  # trials beside the front
SHARING = LinearSegmentedColormap.from_list("sharing", ["#edf3f3", "#7fc1b9", ACCENT, "#053b3a"])

RC: dict[str, Any] = {
    "font.family": SANS,
    "font.size": 8.5,
    # Names and reasons come from outside and may hold a $.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    # Text of the PDF can be searched and copied.
    "pdf.fonttype": 42,
}


def signed(value: float, decimals: int = 2) -> str:
    """Write a number with its sign, as `+1.25` or `−0.50`; an en dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    text = _plain(abs(value), decimals)
    if float(text.replace(" ", "")) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def number(value: float, decimals: int) -> str:
    """Write a number with fixed decimals; an en dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    return ("−" if value < 0 else "") + _plain(abs(value), decimals)


def _plain(value: float, decimals: int) -> str:
    if value >= 1e7:  # Digits of such a number say nothing, and take the room of its neighbours.
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.{decimals}f}".replace(",", " ")


def decimals(values: Sequence[float], digits: int = 3) -> int:
    """Count the decimals that show a column of numbers with about `digits` significant digits."""
    magnitudes = sorted(abs(v) for v in values if math.isfinite(v) and v != 0)
    if not magnitudes:
        return 0
    median = magnitudes[len(magnitudes) // 2]
    return min(max(digits - 1 - math.floor(math.log10(median)), 0), 6)


def compact(value: float) -> str:
    """Write a positive number with three significant digits, as `893`, `31.2` or `0.0412`."""
    return number(value, decimals([value]))


def operations_unit(pflops: float) -> tuple[str, float]:
    """Choose the unit in which a number of training FLOPs is shown, as `("T", 1000.0)`.

    Returns:
        The letter before `FLOPs`, and how many of that unit a PFLOP is.
    """
    units = (("P", 1.0), ("T", 1e3), ("G", 1e6))
    return next((unit for unit in units if pflops * unit[1] >= 1), units[-1])


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it, as `42 s`, `5.3 min`, `6.3 h` or `12.1 days`."""
    for unit, length, least in (("days", 86400, 172800), ("h", 3600, 3600), ("min", 60, 60)):
        if seconds >= least:
            return f"{compact(seconds / length)} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{compact(seconds)} s"


def arrow(higher_is_better: bool) -> str:
    """Choose the arrow that says which direction is better."""
    return "↑" if higher_is_better else "↓"


def set_ticks(axis: Axis, length: float, *, log: bool = False, integer: bool = False) -> None:
    """Choose ticks that have room beside each other, with plain numbers.

    Args:
        axis: A horizontal or a vertical axis; its limits are read when it is drawn.
        length: Inches.
        log: Whether it is logarithmic.
        integer: Whether only whole numbers are named.
    """
    room = 0.45 if isinstance(axis, XAxis) else 0.30
    count = min(max(int(length / room), 2), 10)
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if log:
        axis.set_major_locator(_LogTicks(count))
    else:
        least = 1 if integer else 2
        steps = [1, 2, 5, 10] if integer else [1, 2, 2.5, 5, 10]
        axis.set_major_locator(MaxNLocator(count, integer=integer, min_n_ticks=least, steps=steps))
    axis.set_major_formatter(_PlainNumbers(same_digits=not log))


class _LogTicks(Locator):
    """Ticks of a logarithmic axis: powers of ten, or also 2 and 5 times them where that is little.

    There are at least two in any range.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self) -> list[float]:
        low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """Choose the ticks of a range."""
        powers = range(math.floor(math.log10(vmin)) - 1, math.ceil(math.log10(vmax)) + 2)
        tens = [10.0**p for p in powers if vmin <= 10.0**p <= vmax]
        finer = [f * 10.0**p for p in powers for f in (1, 2, 5) if vmin <= f * 10.0**p <= vmax]
        if 2 <= len(finer) <= self.count:
            return finer
        for ticks in (tens, finer):
            if len(ticks) >= 2:
                return ticks[:: -(-len(ticks) // self.count)]
        values = MaxNLocator(self.count, min_n_ticks=2).tick_values(vmin, vmax)
        return [float(value) for value in values if vmin <= value <= vmax]


class _PlainNumbers(Formatter):
    """Numbers without an offset or a factor aside, with as few digits as tell ticks apart.

    Attributes:
        same_digits: Whether all have as many digits after the point.
    """

    def __init__(self, *, same_digits: bool) -> None:
        self.same_digits = same_digits

    def __call__(self, value: float, pos: int | None = None) -> str:
        del pos
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Write all ticks of an axis."""
        numbers = [float(value) for value in values]
        size = max(map(abs, numbers), default=0.0)
        for digits in range(6):
            texts = [f"{value:.{digits}f}" for value in numbers]
            lost = [abs(float(t) - v) for t, v in zip(texts, numbers, strict=True)]
            if max(lost, default=0.0) <= 1e-6 * size and size < 1e6:
                shown = texts if self.same_digits else [f"{value:.5g}" for value in numbers]
                break
        else:
            shown = [f"{value:.3g}" for value in numbers]
        plain = [text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e") for text in shown]
        return [text.replace("-", "−") for text in plain]
