"""The report as a browser shows it: on a phone, in the dark and on paper."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from rayward.pipelines.report.report import write_report
from tests.browser import Browser, chromium
from tests.report_run import make_run

pytestmark = pytest.mark.browser

# A4, 8.27 by 11.69 inches, less the margins of the page's @page rule; in CSS pixels.
PAPER_WIDTH, PAPER_HEIGHT = 794 - 2 * 49, 1122 - 2 * 53
COLOURS = ("paper", "ink", "axis", "heat", "series")
WHITE, BLACK = "rgb(255, 255, 255)", "rgb(0, 0, 0)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "tiny"))


def measure(browser: Browser) -> dict[str, Any]:
    return browser.ask(
        """(() => {
        const all = name => [...document.querySelectorAll(name)];
        const shown = document.documentElement.clientWidth;
        const style = name => getComputedStyle(document.querySelector(name));
        return {
            over: document.documentElement.scrollWidth - shown,
            outside: all('main *').filter(one => !one.closest('.scroll, svg')
                && one.getBoundingClientRect().right > shown + 0.5).length,
            clipped: all('main svg').filter(one => {
                const box = one.getBoundingClientRect();
                return [...one.querySelectorAll('text')].some(word => {
                    const own = word.getBoundingClientRect();
                    return own.left < box.left - 3 || own.right > box.right + 3;
                });
            }).length,
            crowded: all('main svg').filter(one => {
                const words = [...one.querySelectorAll('text')].map(
                    word => word.getBoundingClientRect());
                return words.some((a, i) => words.some((b, j) => i < j
                    && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3));
            }).length,
            wide: all('.scroll').filter(one => one.scrollWidth > one.clientWidth).length,
            cells: all('td.cell').length,
            rates: all('#rates tr').length,
            charts: all('.chart svg').length,
            width: document.querySelector('.chart svg').getBoundingClientRect().width,
            paper: style('body').backgroundColor,
            ink: style('body').color,
            axis: style('.chart svg text').fill,
            heat: style('td.cell').backgroundColor,
            series: style(':root').getPropertyValue('--series-1'),
        } })()"""
    )


@pytest.mark.parametrize("width", [320, 375, 400, 1200])
def test_the_page_does_not_scroll_sideways(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width)
    found = measure(browser)
    assert (found["over"], found["outside"], found["clipped"]) == (0, 0, 0)
    assert found["crowded"] == 0  # no word of a chart lies on another
    assert found["wide"] == 0  # the tables of this report fold where there is little room
    assert found["cells"] == 63
    # The head, the judge, seven rates, two changes and two scores.
    assert found["rates"] == 13
    assert found["charts"] == 57
    # One chart to a row on a phone, three on a desk.
    assert found["width"] > 0.85 * width if width <= 400 else found["width"] < width / 3
    # Nothing was asked for but the file itself.
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "about"}


def test_a_table_that_is_too_wide_scrolls_by_itself(browser: Browser, report: Path) -> None:
    browser.open(report, 375)
    found = browser.ask(
        """(() => {
        const table = document.querySelector('#rates');
        table.style.minWidth = '900px';
        const box = table.closest('.scroll');
        return {
            inside: box.scrollWidth - box.clientWidth,
            over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        } })()"""
    )
    assert found["inside"] > 500
    assert found["over"] == 0


def test_results_are_a_list_on_a_phone_and_a_table_on_a_desk(
    browser: Browser, report: Path
) -> None:
    places = {}
    for width in (375, 1200):
        browser.open(report, width)
        places[width] = browser.ask(
            """(() => {
            const row = document.querySelectorAll('#rates tbody tr')[1];
            const cells = [...row.querySelectorAll('td')].map(one => one.getBoundingClientRect());
            return {
                across: new Set(cells.map(one => Math.round(one.left))).size,
                down: new Set(cells.map(one => Math.round(one.top))).size,
                name: getComputedStyle(row.querySelector('td'), '::before').content,
            } })()"""
        )
    # Five policies.
    assert places[1200] == {"across": 5, "down": 1, "name": "none"}
    assert places[375] == {"across": 1, "down": 5, "name": '"SFT"'}


def test_many_policies_scroll_under_their_names_and_fit_on_paper(
    browser: Browser, tmp_path: Path
) -> None:
    page = write_report(make_run(tmp_path / "run", stages=("sft", "safety_sft"), rounds=4))
    browser.open(page, 1000)
    found = browser.ask(
        """(() => {
        const box = document.querySelector('#rates').closest('.scroll');
        box.scrollLeft = 150;
        return {
            wide: box.scrollWidth - box.clientWidth,
            over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
            name: box.querySelector('tbody th').getBoundingClientRect().left
                - box.getBoundingClientRect().left,
        } })()"""
    )
    assert found["wide"] >= 150
    assert found["over"] == 0
    assert found["name"] == pytest.approx(0, abs=1)
    browser.open(page, PAPER_WIDTH, media="print")
    printed = measure(browser)
    assert (printed["over"], printed["wide"], printed["crowded"]) == (0, 0, 0)


def test_the_dark_has_colours_of_its_own(browser: Browser, report: Path) -> None:
    brightness = {}
    told = {}
    for dark in (False, True):
        browser.open(report, 375, dark=dark)
        told[dark] = measure(browser)
        corner = imread(io.BytesIO(browser.picture(y=0, width=8, height=8)))
        brightness[dark] = float(corner[..., :3].mean())
    assert told[False]["paper"] == WHITE
    for name in COLOURS:
        assert told[False][name] != told[True][name], name
    # A chart's words have the ink of the page around it.
    assert told[True]["axis"] == told[True]["ink"]
    assert brightness[False] == 1
    assert brightness[True] < 0.15


def test_paper_is_black_on_white_and_cuts_no_chart(browser: Browser, report: Path) -> None:
    browser.open(report, PAPER_WIDTH, media="print")
    found = measure(browser)
    browser.open(report, PAPER_WIDTH, dark=True, media="print")
    in_the_dark = measure(browser)
    assert [in_the_dark[name] for name in COLOURS] == [found[name] for name in COLOURS]
    assert found["paper"] in (WHITE, "rgba(0, 0, 0, 0)")
    assert (found["ink"], found["axis"]) == (BLACK, BLACK)
    assert (found["over"], found["clipped"]) == (0, 0)
    kept = browser.ask(
        """(() => {
        const whole = [...document.querySelectorAll('figure, table, .answer, tr')];
        return {
            count: whole.length,
            breakable: whole.filter(
                one => getComputedStyle(one).breakInside != 'avoid').length,
            tallest: Math.max(...whole.map(one => one.getBoundingClientRect().height)),
            menu: getComputedStyle(document.querySelector('nav')).display,
            shaded: getComputedStyle(document.querySelector('td.cell')).printColorAdjust,
        } })()"""
    )
    assert kept["count"] > 100
    assert kept["breakable"] == 0
    assert kept["tallest"] < PAPER_HEIGHT
    assert kept["menu"] == "none"
    assert kept["shaded"] == "exact"
    pages = len(re.findall(rb"/Type\s*/Page\b", browser.printed()))
    assert 8 <= pages <= 18
