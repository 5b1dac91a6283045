"""Events: from any id on, each is told once, until the job's end."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from rayward.services.jobs import events as job_events
from rayward.services.jobs.events import Cursor, EventPage, JobEvent, events_since, parse_cursor
from rayward.services.jobs.runs import RunFiles
from rayward.services.jobs.schemas import JobState, MetricsEvent, StateEvent


def state(name: JobState = "running", stage: str | None = "sft") -> StateEvent:
    return StateEvent(state=name, stage=stage, stages_done=[], error=None)


def write_steps(run: Path, *steps: int, time: float = 1.0, torn: str = "") -> None:
    rows = [{"stage": "sft", "step": step, "time": time, "loss": step / 4} for step in steps]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text + torn)


def files(run: Path) -> RunFiles:
    return RunFiles(fs.LocalFileSystem(), str(run))


def kinds(page: EventPage) -> list[str]:
    return [one.event for one in page.events]


def steps(page: EventPage) -> list[int]:
    return [one.data.step for one in page.events if isinstance(one.data, MetricsEvent)]


@given(st.integers(0, 10**18 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_an_id_says_where_its_reader_is(offset: int, line: int, told: int) -> None:
    cursor = Cursor(offset, line, told)
    assert parse_cursor(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    ["", "0", "1.2.3", "-1.00000000.00000000", "0.0000000G.00000000", "\u0663.00000000.00000000"],
)
def test_no_other_text_is_an_id(text: str) -> None:
    assert parse_cursor(text) is None


def test_news_alone_is_told(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, torn='{"stage": "sft", "st')
    first = events_since(files(tmp_path), state(), Cursor())
    assert kinds(first) == ["state", "metrics", "metrics"]
    data = first.events[2].data
    assert isinstance(data, MetricsEvent)
    assert (data.stage, data.step, data.metrics) == ("sft", 2, {"loss": 0.5})
    again = events_since(files(tmp_path), state(), first.events[-1].cursor)
    assert again == EventPage([], more=False, final=False)
    write_steps(tmp_path, 1, 2, 3)
    assert steps(events_since(files(tmp_path), state(), first.events[-1].cursor)) == [3]
    changed = events_since(files(tmp_path), state(stage="ppo"), first.events[-1].cursor)
    assert kinds(changed) == ["state", "metrics"]


def test_the_end_is_told_last(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    page = events_since(files(tmp_path), state("succeeded", None), Cursor())
    assert kinds(page) == ["metrics", "state"]
    assert page.final
    # A reader who has been told all is told that this is the end.
    again = events_since(files(tmp_path), state("succeeded", None), page.events[-1].cursor)
    assert again == EventPage([], more=False, final=True)


def test_steps_that_are_taken_back_are_said_to_be(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    cursor = events_since(files(tmp_path), state(), Cursor()).events[-1].cursor
    write_steps(tmp_path, 1)
    shorter = events_since(files(tmp_path), state(), cursor)
    assert kinds(shorter) == ["reset", "metrics"]
    # As long as before, and other steps.
    write_steps(tmp_path, 1, 2, 3, time=2.0)
    assert kinds(events_since(files(tmp_path), state(), cursor)) == ["reset", *["metrics"] * 3]


def test_long_lines_are_told_apart(tmp_path: Path) -> None:
    for last in (1, 2):
        row = {"stage": "s", "step": 1, "time": 1.0, **{f"m{n}": 0.5 for n in range(100)}}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"z": last}) + "\n")
        if last == 1:
            cursor = events_since(files(tmp_path), state(), Cursor()).events[-1].cursor
            assert not events_since(files(tmp_path), state(), cursor).events
    assert kinds(events_since(files(tmp_path), state(), cursor)) == ["reset", "metrics"]


@given(cuts=st.lists(st.integers(0, 30), max_size=12), most=st.integers(1, 5))
def test_a_reader_who_is_cut_off_loses_nothing_and_hears_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], most: int
) -> None:
    run = tmp_path_factory.getbasetemp()
    write_steps(run, *range(20))
    cursor, told = Cursor(), list[JobEvent]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_events, "_MOST", most)
        pages = iter([*cuts, *[10**6] * 100])
        final = False
        while not final:
            page = events_since(files(run), state("failed", None), cursor)
            heard = page.events[: next(pages)]
            told += heard
            cursor = heard[-1].cursor if heard else cursor
            final = page.final and heard == page.events
    assert [one.event for one in told] == ["metrics"] * 20 + ["state"]
    assert [one.data.step for one in told[:-1] if isinstance(one.data, MetricsEvent)] == [
        *range(20)
    ]
