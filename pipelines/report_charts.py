"""The report's charts, as SVG that takes its colours and its type from the page around it."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.judgements import Rate
from pipelines.report_words import number

# Stand-ins, which no chart uses otherwise, for colours that the page decides.
_INK = "#010203"
_FAINT = "#040506"
_SERIES = ("#070809", "#0a0b0c")
_PAGE_COLOURS = {
    _INK: "currentColor",
    _FAINT: "var(--rule)",
    _SERIES[0]: "var(--series-1)",
    _SERIES[1]: "var(--series-2)",
}
# The second series is broken too: colours are not all that tells the two apart, on paper least.
_DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)))
_TICK_STEPS = (1, 2, 5, 10)
# Curves of more steps than this are noise to the eye: a moving mean is drawn over them.
_SMOOTH_ABOVE = 150
_WIDTH_IN, _HEIGHT_IN, _BAR_IN = 3.6, 2.0, 0.26
# The salt makes ids in the SVG the same every time; it is each chart's key, since all charts
# share one page.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
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


def line_chart(
    key: str,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    bounds: tuple[float, float] | None,
    noisy: bool,
) -> Chart:
    """Curves by step.

    Args:
        key: unique on the page.
        title: what is shown, with its unit.
        series: one or two curves, each as steps and values, not empty.
        bounds: the vertical axis's range, where it is known.
        noisy: draw the moving mean over a long curve.
    """
    longest = max(len(steps) for steps, _ in series.values())
    smooth = noisy and longest > _SMOOTH_ABOVE
    with _styled(key):
        figure, axes = _empty()
        looks = zip(_SERIES, _DASHES, series.values(), strict=False)
        for colour, dashes, (steps, values) in looks:
            if smooth:
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.6)
                steps, values = _smoothed(steps, values, _window(longest))
            marker = "o" if len(steps) <= 12 else ""
            axes.plot(steps, values, color=colour, linestyle=dashes, marker=marker, markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=_TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
        axes.set_xlabel("step")
        if bounds is not None:
            low, high = bounds
            axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        svg = _svg(figure)
    told = "; ".join(
        f"{name} from {number(values[0])} (step {steps[0]:g}) to {number(values[-1])} "
        f"(step {steps[-1]:g}), lowest {number(min(values))}, highest {number(max(values))}"
        for name, (steps, values) in series.items()
    )
    legend = tuple(
        Key(name, place if len(series) > 1 else None, f"{number(values[0])} → {number(values[-1])}")
        for place, (name, (_, values)) in enumerate(series.items(), start=1)
    )
    if smooth:
        legend += (Key("", None, f"strong line: mean of {_window(longest)} steps"),)
    return Chart(title, f"Line chart of {title}: {told}.", legend, svg)


def calibration_chart(
    key: str, title: str, bins: Sequence[tuple[float, Rate]], lowest: float
) -> Chart:
    """How often something was true, against how often it should have been.

    Args:
        key: unique on the page.
        title: what is shown.
        bins: predicted probability and observed share, not empty.
        lowest: the least probability that can be predicted.
    """
    x = [predicted for predicted, _ in bins]
    y = [observed.rate or 0.0 for _, observed in bins]
    below = [at - (observed.low or 0.0) for at, (_, observed) in zip(y, bins, strict=True)]
    above = [(observed.high or 0.0) - at for at, (_, observed) in zip(y, bins, strict=True)]
    margin = 0.04 * (1 - lowest)
    with _styled(key):
        figure, axes = _empty()
        axes.plot([lowest, 1], [lowest, 1], color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.errorbar(
            x, y, yerr=(below, above), color=_SERIES[0], fmt="o", markersize=3.5, elinewidth=1
        )
        axes.set_xlim(lowest - margin, 1 + margin)
        least = min(at - gap for at, gap in zip(y, below, strict=True))
        axes.set_ylim(min(lowest, least) - margin, 1 + margin)
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("observed")
        svg = _svg(figure)
    told = "; ".join(
        f"{a:.2f} predicted, {b:.2f} observed of {observed.total}"
        for a, b, (_, observed) in zip(x, y, bins, strict=True)
    )
    return Chart(title, f"Calibration chart, {title}: {told}.", (), svg)


def histogram_chart(
    key: str,
    title: str,
    edges: Sequence[float],
    spreads: Mapping[str, Sequence[float]],
    filled: str,
    unit: str,
    told: str,
) -> Chart:
    """How scores are spread.

    Args:
        key: unique on the page.
        title: what is shown.
        edges: of the bins, in logits.
        spreads: the height of every bin, for one or two sets of scores, in the legend's order.
        filled: which of them is drawn as an area; the other is a broken outline.
        unit: of the heights.
        told: the sets in words, for those who do not see them.
    """
    drawn_as = {name: 1 if name == filled else 2 for name in spreads}
    with _styled(key):
        figure, axes = _empty()
        for name, heights in spreads.items():
            colour, dashes = _SERIES[drawn_as[name] - 1], _DASHES[drawn_as[name] - 1]
            axes.stairs(heights, edges, color=colour, linewidth=1.4, linestyle=dashes)
            if name == filled:
                axes.stairs(heights, edges, color=colour, fill=True, alpha=0.2)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=_TICK_STEPS))
        axes.set_xlabel("score (logit)")
        axes.set_ylabel(unit)
        svg = _svg(figure)
    legend = tuple(Key(name, place, "") for name, place in drawn_as.items())
    return Chart(title, f"Histogram of {title}, by score in logits: {told}.", legend, svg)


def bar_chart(key: str, title: str, bars: Sequence[tuple[str, float, str]]) -> Chart:
    """Amounts side by side.

    Args:
        key: unique on the page.
        title: what is shown, with its unit.
        bars: name, amount and the amount in words, from the top down; not empty.
    """
    names = [name for name, _, _ in bars]
    amounts = [amount for _, amount, _ in bars]
    with _styled(key):
        figure, axes = _empty(height_in=0.4 + _BAR_IN * len(bars))
        drawn = axes.barh(range(len(bars)), amounts, color=_SERIES[0], height=0.6)
        axes.bar_label(drawn, [text for _, _, text in bars], padding=3)
        axes.set_yticks(range(len(bars)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        # Room for the words behind the longest bar.
        axes.set_xlim(0, 1.5 * max(amounts))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=_TICK_STEPS))
        svg = _svg(figure)
    told = "; ".join(f"{name} {text}" for name, _, text in bars)
    return Chart(title, f"Bar chart, {title}: {told}.", (), svg)


def _window(steps: int) -> int:
    """Over how many steps the moving mean of a curve goes; odd."""
    return 2 * (steps // 60) + 1


def _smoothed(
    steps: Sequence[float], values: Sequence[float], window: int
) -> tuple[Sequence[float], Sequence[float]]:
    """The moving mean where a whole window fits; a curve that is shorter stays as it is."""
    if len(steps) < window:
        return steps, values
    half = window // 2
    kernel = np.full(window, 1 / window)
    return steps[half : len(steps) - half], np.convolve(values, kernel, mode="valid").tolist()


def _styled(key: str) -> AbstractContextManager[None]:
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": key})


def _empty(height_in: float = _HEIGHT_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure) -> str:
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
