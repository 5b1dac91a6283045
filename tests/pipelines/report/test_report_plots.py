"""The scale of shares, its ticks, and names that keep out of each other's way."""

import re
from itertools import combinations
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayward.cluster.records.rates import mean_score, rate
from rayward.pipelines.report.labels import Box, PlacedLabel, place_labels
from rayward.pipelines.report.plots import (
    PlanePoint,
    Share,
    plane_chart,
    share_of,
    share_range,
    share_ticks,
    shares_chart,
    stretched,
)

INSIDE = Box(0, 0, 320, 200)


def test_the_scale_has_0_and_100_and_shows_tenths_of_a_per_cent() -> None:
    assert stretched(0.5) == 0
    assert stretched(0.0) == pytest.approx(log(0.001 / 1.001))
    assert stretched(1.0) == pytest.approx(-stretched(0.0))
    # From 0.1 % to 0.5 % is as far as from 50 % to 75 %, nearly.
    assert stretched(0.005) - stretched(0.001) == pytest.approx(log(3) + 0.005, abs=1e-3)
    assert stretched(0.75) - stretched(0.5) == pytest.approx(log(3), abs=3e-3)


def test_ticks_are_round_shares_with_room_between_them() -> None:
    wide = share_range([Share(0.5, 0.48, 0.53), Share(0.0, 0.0, 0.004)])
    assert share_ticks(*wide, length=130, upright=False) == [0, 0.002, 0.01, 0.03, 0.1, 0.25, 0.5]
    narrow = share_range([Share(0.998, 0.993, 0.9995)])
    assert share_ticks(*narrow, length=130, upright=False) == [0.995, 0.998, 0.999]
    # One above the other there is more room.
    assert share_ticks(*narrow, length=180, upright=True) == [0.995, 0.998, 0.999, 0.9995]


def test_shares_by_stage_by_hand() -> None:
    rows = [share_of(rate(1, 20)), None, share_of(rate(0, 0)), share_of(mean_score([0.0, 0.0]))]
    assert rows[2] is None
    chart = shares_chart("key", "Violations (%)", ["a", "b", "c", "d"], {"violations": rows})
    # Wilson's interval of 1 in 20 is 0.9 % to 23.6 %.
    assert chart.description == (
        "Chart of Violations (%), by stage: a 5.0\u00a0% (0.9\u00a0% to 23.6\u00a0%); "
        "d 50.0\u00a0% (50.0\u00a0% to 50.0\u00a0%)."
    )
    assert chart.legend == ()
    assert re.findall(r">([^<>]*)</text>", chart.svg)[-4:] == [
        "5.0\u00a0%",
        "\u2013",
        "\u2013",
        "50.0\u00a0%",
    ]
    two = shares_chart("key", "Refusals (%)", ["a"], {"benign": rows[:1], "borderline": rows[:1]})
    assert [(key.name, key.series) for key in two.legend] == [("benign", 1), ("borderline", 2)]


def test_lines_of_the_plane_lead_from_parent_to_child() -> None:
    share = Share(0.5, 0.4, 0.6)
    names = ["SFT", "PPO", "SFT 2", "PPO 2"]
    parents = [None, "SFT", None, "SFT 2"]
    points = [
        PlanePoint(name, Share(0.1 * i, 0.1 * i, 0.1 * i), share, parent)
        for i, (name, parent) in enumerate(zip(names, parents, strict=True), start=1)
    ]
    chart = plane_chart("key", "Plane", points, "helpful")
    assert all(f">{name}</text>" in chart.svg for name in names)
    thin = re.findall(
        r"stroke: var\(--series-1\); stroke-opacity: 0.6; stroke-width: 0.9", chart.svg
    )
    assert len(thin) == 2
    alone = plane_chart("key", "Plane", points[:1], "helpful")
    assert "stroke-width: 0.9" not in alone.svg


def test_a_lone_name_stands_right_of_its_point() -> None:
    (placed,) = place_labels([(100, 100)], [(40, 10)], INSIDE, [], 3.0)
    assert placed == PlacedLabel(Box(106, 95, 146, 105), None)
    # At the right edge, to its left.
    (placed,) = place_labels([(315, 100)], [(40, 10)], INSIDE, [], 3.0)
    assert placed.box.right == pytest.approx(309)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(40, 60), st.floats(90, 110)),
        min_size=2,
        max_size=9,
    )
)
def test_names_of_points_close_together_do_not_overlap(points: list[tuple[float, float]]) -> None:
    lines = [(index, index + 1) for index in range(len(points) - 1)]
    placed = place_labels(points, [(80, 10)] * len(points), INSIDE, lines, 3.0)
    assert not any(one.box.meets(other.box) for one, other in combinations(placed, 2))
    assert all(
        one.box.left >= 0 and one.box.right <= 320 and one.box.bottom >= 0 and one.box.top <= 200
        for one in placed
    )
