"""The report's plots of policies: a rate by stage, and safety against helpfulness.

Shares are drawn by their log-odds, with 0.1 % added to both sides so that 0 and 100 % are on the
scale too: late stages differ in tenths of a per cent, which a plain scale would not show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from rayward.cluster.records.rates import MeanScore, Rate
from rayward.pipelines.report.drawing import (
    DASHES,
    INK,
    PAPER,
    SERIES,
    Chart,
    Key,
    empty_axes,
    styled,
    svg_of,
)
from rayward.pipelines.report.labels import Box, PlacedLabel, place_labels
from rayward.pipelines.report.words import percent

_ROW_IN, _PLANE_IN = 0.27, (4.9, 3.3)
_ROW_PT, _PLANE_PT = 130.0, (290.0, 180.0)  # how long their axes are, nearly
_MARKERS = ("o", "D")
_ADDED = 0.001
# In the order in which they are wanted on an axis.
_TICKS = (
    *(0.0, 1.0, 0.5, 0.01, 0.99, 0.1, 0.9, 0.001, 0.999, 0.05, 0.95, 0.2, 0.8, 0.005, 0.995),
    *(0.02, 0.98, 0.002, 0.998, 0.3, 0.7, 0.4, 0.6, 0.03, 0.97, 0.15, 0.85, 0.07, 0.93),
    *(0.25, 0.75, 0.35, 0.65, 0.45, 0.55, 0.12, 0.88, 0.0005, 0.9995),
)
_TICK_LETTER_PT, _TICK_HEIGHT_PT, _TICK_GAP_PT = 5.0, 9.0, 7.0
_LABEL_PT, _LETTER_PT = 8.0, 4.5  # the size of the plane's names, and a letter's width
_DOT_PT = 3.5


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PlanePoint:
    """One policy: how often it violates, and how helpful it is."""

    name: str
    violations: Share
    helpfulness: Share
    parent: str | None  # the name of the point that it came from


def share_of(found: Rate | MeanScore | None) -> Share | None:
    """A rate or a mean probability as a share to draw; None where there is none."""
    if isinstance(found, MeanScore):
        return Share(found.mean, found.low, found.high)
    if found is None or found.rate is None or found.low is None or found.high is None:
        return None
    return Share(found.rate, found.low, found.high)


def shares_chart(
    key: str, title: str, names: Sequence[str], series: Mapping[str, Sequence[Share | None]]
) -> Chart:
    """Shares by name with their intervals, one row for each name, from the top down.

    Args:
        key: unique on the page.
        title: what is shown.
        names: of the rows.
        series: one or two sets of shares, one for each name; None where there is none.
    """
    known = [one for shares in series.values() for one in shares if one is not None]
    low, high = share_range(known)
    many = len(series) > 1
    with styled(key):
        figure, axes = empty_axes(height_in=0.45 + _ROW_IN * len(names) * (1.25 if many else 1))
        for place, shares in enumerate(series.values()):
            shift = (place - 0.5) * 0.4 if many else 0.0
            for row, one in enumerate(shares):
                _value(axes, row + shift, one, SERIES[place], coloured=many)
                if one is not None:
                    ends = stretched(one.low), stretched(one.high)
                    axes.plot(ends, [row + shift] * 2, color=SERIES[place], linestyle=DASHES[place])
                    axes.plot(
                        stretched(one.value),
                        row + shift,
                        color=SERIES[place],
                        marker=_MARKERS[place],
                        markersize=4.5,
                        clip_on=False,
                    )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        _set_shares(axes, low, high, _ROW_PT, upright=False)
        svg = svg_of(figure)
    told = "; ".join(
        f"{name} {percent(one.value)} ({percent(one.low)} to {percent(one.high)})"
        + (f" {text}" if many else "")
        for text, shares in series.items()
        for name, one in zip(names, shares, strict=True)
        if one is not None
    )
    legend = tuple(Key(text, place, "") for place, text in enumerate(series, start=1))
    return Chart(title, f"Chart of {title}, by stage: {told}.", legend if many else (), svg)


def plane_chart(key: str, title: str, points: Sequence[PlanePoint], axis: str) -> Chart:
    """Violations against helpfulness, a labelled point for each policy.

    Args:
        key: unique on the page.
        title: what is shown.
        points: the policies in order, at least one.
        axis: what helpfulness is here.
    """
    x_range = share_range([one.violations for one in points])
    y_range = share_range([one.helpfulness for one in points])
    places = {one.name: index for index, one in enumerate(points)}
    lines = [
        (places[one.parent], index)
        for index, one in enumerate(points)
        if one.parent is not None and one.parent in places
    ]
    at = [(stretched(one.violations.value), stretched(one.helpfulness.value)) for one in points]
    with styled(key):
        figure, axes = empty_axes(width_in=_PLANE_IN[0], height_in=_PLANE_IN[1])
        _set_shares(axes, *x_range, _PLANE_PT[0], upright=False)
        _set_shares(axes, *y_range, _PLANE_PT[1], upright=True)
        for one, (x, y) in zip(points, at, strict=True):
            across = stretched(one.violations.low), stretched(one.violations.high)
            upwards = stretched(one.helpfulness.low), stretched(one.helpfulness.high)
            axes.plot(across, (y, y), (x, x), upwards, color=SERIES[0], linewidth=1.5, alpha=0.25)
        for a, b in lines:
            ends = np.array([at[a], at[b]]).T
            axes.plot(*ends, color=SERIES[0], linewidth=0.9, alpha=0.6)
        for index, (x, y) in enumerate(at):
            last = index == len(at) - 1
            axes.plot(
                x,
                y,
                "o",
                color=SERIES[0],
                markersize=2 * _DOT_PT,
                fillstyle="full" if last else "none",
                clip_on=False,
            )
        axes.set_xlabel("violations, of adversarial prompts (%; lower is better)")
        axes.set_ylabel(f"{axis} (%; higher is better)")
        figure.draw_without_rendering()  # which settles where the axes are
        for one, spot, label in zip(points, at, _labels(axes, points, at, lines), strict=True):
            _write(axes, one.name, spot, label)
        svg = svg_of(figure)
    told = "; ".join(
        f"{one.name} {percent(one.violations.value)} and {percent(one.helpfulness.value)}"
        for one in points
    )
    return Chart(
        title,
        f"Plane of violations (lower is better) and {axis} (higher is better): {told}.",
        (),
        svg,
    )


def stretched(share: float) -> float:
    """A share's place on the scale of the plots: its log-odds, finite at 0 and 1 too."""
    return log((share + _ADDED) / (1 - share + _ADDED))


def share_range(shares: Sequence[Share]) -> tuple[float, float]:
    """The part of the scale that the shares and their intervals take up, and a margin."""
    low = min(stretched(one.low) for one in shares)
    high = max(stretched(one.high) for one in shares)
    # Shares without a spread still need an axis around them.
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def share_ticks(low: float, high: float, length: float, upright: bool) -> list[float]:
    """The shares to name on an axis, in order, as many as can be read.

    Args:
        low: where the axis begins, on the scale.
        high: where it ends.
        length: of the axis, in points.
        upright: whether names stand one above the other.
    """

    def room(tick: float) -> float:
        """Half of what a name takes up."""
        letters = _TICK_LETTER_PT * len(_tick_name(tick))
        return ((_TICK_HEIGHT_PT if upright else letters) + _TICK_GAP_PT) / 2

    chosen: list[float] = []
    for tick in _TICKS:
        at = stretched(tick)
        apart = all(
            abs(at - stretched(one)) / (high - low) * length >= room(tick) + room(one)
            for one in chosen
        )
        if low <= at <= high and apart:
            chosen.append(tick)
    return sorted(chosen)


def _tick_name(share: float) -> str:
    return f"{100 * share:g}"


def _set_shares(axes: Axes, low: float, high: float, length: float, upright: bool) -> None:
    """Make one axis a scale of shares."""
    ticks = share_ticks(low, high, length, upright)
    axis = axes.yaxis if upright else axes.xaxis
    (axes.set_ylim if upright else axes.set_xlim)(low, high)
    axis.set_major_locator(FixedLocator([stretched(tick) for tick in ticks]))
    axis.set_ticklabels([_tick_name(tick) for tick in ticks])


def _value(axes: Axes, y: float, share: Share | None, colour: str, coloured: bool) -> None:
    """The share in figures, behind the right end of its row."""
    axes.annotate(
        "\u2013" if share is None else percent(share.value),
        (1.02, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=colour if coloured else INK,
    )


def _labels(
    axes: Axes,
    points: Sequence[PlanePoint],
    at: Sequence[tuple[float, float]],
    lines: Sequence[tuple[int, int]],
) -> list[PlacedLabel]:
    """Where the names go, in points from the figure's corner."""
    to_points = 72 / axes.figure.dpi
    spots = axes.transData.transform(at) * to_points
    frame = axes.get_window_extent()
    inside = Box(
        *(edge * to_points for edge in (frame.x0, frame.y0, frame.x1, frame.y1)),
    )
    sizes = [(_LETTER_PT * len(one.name), 1.2 * _LABEL_PT) for one in points]
    return place_labels([(x, y) for x, y in spots.tolist()], sizes, inside, lines, _DOT_PT)


def _write(axes: Axes, name: str, spot: tuple[float, float], label: PlacedLabel) -> None:
    to_points = 72 / axes.figure.dpi
    box = label.box
    middle = np.array([(box.left + box.right) / 2, (box.bottom + box.top) / 2])
    offset = middle - axes.transData.transform(spot) * to_points
    if label.tie is not None:
        end = axes.transData.inverted().transform(np.array(label.tie) / to_points)
        axes.plot(*np.array([spot, end]).T, color=INK, linewidth=0.5, zorder=1)
    axes.annotate(
        name,
        spot,
        xytext=offset.tolist(),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_LABEL_PT,
        annotation_clip=False,
        # So that a cross or a line behind a name does not strike it out.
        bbox={
            "boxstyle": "square,pad=0.05",
            "facecolor": PAPER,
            "edgecolor": "none",
            "alpha": 0.75,
        },
    )
