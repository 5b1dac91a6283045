"""The report's curves, histograms and bars."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from rayward.cluster.records.rates import Rate
from rayward.pipelines.report.drawing import (
    DASHES,
    INK,
    SERIES,
    TICK_STEPS,
    Chart,
    Key,
    empty_axes,
    styled,
    svg_of,
)
from rayward.pipelines.report.words import number

# Curves of more steps than this are noise to the eye: a moving mean is drawn over them.
_SMOOTH_ABOVE = 150
_BAR_IN = 0.26


def line_chart(
    key: str,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    bounds: tuple[float, float] | None,
    noisy: bool,
    along: str = "step",
) -> Chart:
    """Curves by step, or along another count.

    Args:
        key: unique on the page.
        title: what is shown, with its unit.
        series: one or two curves, each as steps and values, not empty.
        bounds: the vertical axis's range, where it is known.
        noisy: draw the moving mean over a long curve.
        along: what the horizontal axis counts.
    """
    longest = max(len(steps) for steps, _ in series.values())
    smooth = noisy and longest > _SMOOTH_ABOVE
    with styled(key):
        figure, axes = empty_axes()
        looks = zip(SERIES, DASHES, series.values(), strict=False)
        for colour, dashes, (steps, values) in looks:
            if smooth:
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.6)
                steps, values = _smoothed(steps, values, _window(longest))
            marker = "o" if len(steps) <= 12 else ""
            axes.plot(steps, values, color=colour, linestyle=dashes, marker=marker, markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS))
        axes.set_xlabel(along)
        if bounds is not None:
            low, high = bounds
            axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        svg = svg_of(figure)
    told = "; ".join(
        f"{name} from {number(values[0])} ({along} {steps[0]:g}) to {number(values[-1])} "
        f"({along} {steps[-1]:g}), lowest {number(min(values))}, highest {number(max(values))}"
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
    with styled(key):
        figure, axes = empty_axes()
        axes.plot([lowest, 1], [lowest, 1], color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.errorbar(
            x, y, yerr=(below, above), color=SERIES[0], fmt="o", markersize=3.5, elinewidth=1
        )
        axes.set_xlim(lowest - margin, 1 + margin)
        least = min(at - gap for at, gap in zip(y, below, strict=True))
        axes.set_ylim(min(lowest, least) - margin, 1 + margin)
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("observed")
        svg = svg_of(figure)
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
    with styled(key):
        figure, axes = empty_axes()
        for name, heights in spreads.items():
            colour, dashes = SERIES[drawn_as[name] - 1], DASHES[drawn_as[name] - 1]
            axes.stairs(heights, edges, color=colour, linewidth=1.4, linestyle=dashes)
            if name == filled:
                axes.stairs(heights, edges, color=colour, fill=True, alpha=0.2)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=TICK_STEPS))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=TICK_STEPS))
        axes.set_xlabel("score (logit)")
        axes.set_ylabel(unit)
        svg = svg_of(figure)
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
    with styled(key):
        figure, axes = empty_axes(height_in=0.4 + _BAR_IN * len(bars))
        drawn = axes.barh(range(len(bars)), amounts, color=SERIES[0], height=0.6)
        axes.bar_label(drawn, [text for _, _, text in bars], padding=3)
        axes.set_yticks(range(len(bars)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        # Room for the words behind the longest bar.
        axes.set_xlim(0, 1.5 * max(amounts))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=TICK_STEPS))
        svg = svg_of(figure)
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
