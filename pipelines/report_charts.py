"""The report's charts, as SVG that takes its colours and its type from the page around it."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.judgements import Rate
from pipelines.reward_accuracy import ScoreHistogram

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
_TICK_STEPS = (1, 2, 5, 10)
_SIZE_IN = (3.6, 2.0)
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
class Chart:
    """A chart and what to say about it."""

    title: str
    description: str  # for those who do not see it
    legend: tuple[str, ...]  # names of the series, in the order of the page's series colours
    svg: str


def line_chart(
    key: str,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    bounds: tuple[float, float] | None = None,
) -> Chart:
    """Curves by step.

    Args:
        key: unique on the page.
        title: what is shown, with its unit.
        series: one or two curves, each as steps and values, not empty.
        bounds: the vertical axis's range, where it is known.
    """
    with _styled(key):
        figure, axes = _empty()
        for colour, (steps, values) in zip(_SERIES, series.values(), strict=False):
            marker = "o" if len(steps) <= 12 else ""
            axes.plot(steps, values, color=colour, marker=marker, markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=_TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=_TICK_STEPS))
        axes.set_xlabel("step")
        if bounds is not None:
            low, high = bounds
            axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        svg = _svg(figure)
    told = "; ".join(
        f"{name} from {values[0]:.3g} (step {steps[0]:g}) to {values[-1]:.3g} (step {steps[-1]:g})"
        for name, (steps, values) in series.items()
    )
    legend = tuple(series) if len(series) > 1 else ()
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
    told = "; ".join(f"{a:.2f} predicted, {b:.2f} observed" for a, b in zip(x, y, strict=True))
    return Chart(title, f"Calibration chart, {title}: {told}.", (), svg)


def histogram_chart(key: str, title: str, histogram: ScoreHistogram) -> Chart:
    """How the scores of chosen and rejected answers are spread."""
    with _styled(key):
        figure, axes = _empty()
        for colour, counts in zip(_SERIES, (histogram.chosen, histogram.rejected), strict=True):
            axes.stairs(counts, histogram.edges, color=colour, linewidth=1.4)
            axes.stairs(counts, histogram.edges, color=colour, fill=True, alpha=0.15)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=_TICK_STEPS))
        axes.set_xlabel("score (logit)")
        axes.set_ylabel("answers")
        svg = _svg(figure)
    centres = [(low + high) / 2 for low, high in pairwise(histogram.edges)]
    means = [
        sum(at * count for at, count in zip(centres, counts, strict=True)) / max(1, sum(counts))
        for counts in (histogram.chosen, histogram.rejected)
    ]
    description = f"Histogram of {title}: chosen mean {means[0]:.2g}, rejected mean {means[1]:.2g}."
    return Chart(title, description, ("chosen", "rejected"), svg)


def _styled(key: str) -> AbstractContextManager[None]:
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": key})


def _empty() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
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
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return text.replace("<svg", '<svg aria-hidden="true"', 1)
