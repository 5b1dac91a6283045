"""How the report's charts are drawn: SVG that takes its colours and its type from the page."""

import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins, which no chart uses otherwise, for colours that the page decides.
INK = "#010203"
FAINT = "#040506"
PAPER = "#0d0e0f"
SERIES = ("#070809", "#0a0b0c")
_PAGE_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--rule)",
    PAPER: "var(--paper)",
    SERIES[0]: "var(--series-1)",
    SERIES[1]: "var(--series-2)",
}
# The second series is broken too: colours are not all that tells the two apart, on paper least.
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)))
TICK_STEPS = (1, 2, 5, 10)
_WIDTH_IN, _HEIGHT_IN = 3.6, 2.0
# The salt makes ids in the SVG the same every time; it is each chart's key, since all charts
# share one page.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True)
class Key:
    """What one series of a chart is called."""

    name: str
    series: int | None  # which of the page's series it is drawn as; None where there is but one
    told: str  # the series in a few numbers


@dataclass(frozen=True)
class Chart:
    """A chart and what to say about it."""

    title: str
    description: str  # for those who do not see it
    legend: tuple[Key, ...]
    svg: str


def styled(key: str) -> AbstractContextManager[None]:
    """The look of a chart, while it is drawn.

    Args:
        key: unique on the page.
    """
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": key})


def empty_axes(height_in: float = _HEIGHT_IN, width_in: float = _WIDTH_IN) -> tuple[Figure, Axes]:
    """A figure with one pair of axes to draw in, in inches."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    return figure, axes


def svg_of(figure: Figure) -> str:
    """The figure as SVG that fits any width and names none of its own colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # An HTML parser knows the name spaces, and the ids of groups would repeat on the page.
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;]*;", "", text)
    # A hundredth of a point is more than a screen or a printer shows.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return text.replace("<svg", '<svg aria-hidden="true"', 1)
