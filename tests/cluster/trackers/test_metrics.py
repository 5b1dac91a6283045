"""Metrics: the lines, and what TensorBoard reads back."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayward.cluster.trackers.interface import EndState, MetricRow
from rayward.cluster.trackers.metrics import MetricsWriter, read_metrics
from rayward.cluster.trackers.tracking import Trackers


def events(directory: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    found = accumulator.Tensors(tag)
    return [(event.step, event.tensor_proto.float_val[0]) for event in found]


def rows(path: Path) -> list[tuple[str, int, float]]:
    return [(row["stage"], row["step"], row["train/loss"]) for row in read_metrics(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_is_there_as_soon_as_it_is_logged(path: Path, tmp_path: Path) -> None:
    with MetricsWriter(path, tmp_path / "tb") as writer:
        writer.log(1, "sft", {"train/loss": 0.5, "train/learning_rate": 1e-5})
        (row,) = read_metrics(path)
        assert row.pop("time") > 1.6e9
        assert row == {"stage": "sft", "step": 1, "train/loss": 0.5, "train/learning_rate": 1e-5}
        assert events(tmp_path / "tb" / "sft", "train/loss") == [(1, 0.5)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_never_written(path: Path, tmp_path: Path, value: float) -> None:
    with MetricsWriter(path, tmp_path / "tb") as writer:
        with pytest.raises(ValueError, match=r"actor/ppo_kl.*step 3"):
            writer.log(3, "ppo", {"critic/score/mean": 1.0, "actor/ppo_kl": value})
        with pytest.raises(ValueError, match="'step'"):
            writer.log(3, "ppo", {"step": 1.0})
    assert read_metrics(path) == []


def test_a_resumed_stage_forgets_what_came_after(path: Path, tmp_path: Path) -> None:
    with MetricsWriter(path, tmp_path / "tb") as writer:
        for step in range(1, 6):
            writer.log(step, "sft", {"train/loss": step})
            writer.log(step, "ppo", {"train/loss": 10 * step})
    with MetricsWriter(path, tmp_path / "tb") as writer:
        assert writer.truncate("ppo", 3) == 2
        writer.log(4, "ppo", {"train/loss": 44})
    ppo = [(1, 10.0), (2, 20.0), (3, 30.0), (4, 44.0)]
    assert [row[1:] for row in rows(path) if row[0] == "ppo"] == ppo
    assert [row[1] for row in rows(path) if row[0] == "sft"] == [1, 2, 3, 4, 5]
    assert events(tmp_path / "tb" / "ppo", "train/loss") == ppo
    assert len(events(tmp_path / "tb" / "sft", "train/loss")) == 5


def test_half_a_line_is_dropped_and_never_joined(path: Path, tmp_path: Path) -> None:
    with MetricsWriter(path, tmp_path / "tb") as writer:
        writer.log(1, "sft", {"train/loss": 1})
    with path.open("a") as file:
        file.write('{"stage": "sft", "st')
    assert rows(path) == [("sft", 1, 1.0)]
    with MetricsWriter(path, tmp_path / "tb") as writer:
        writer.log(2, "sft", {"train/loss": 2})
    assert rows(path) == [("sft", 1, 1.0), ("sft", 2, 2.0)]


class Reader:
    """A tracker that looks at the file whenever it is given a line."""

    name = "reader"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen: list[tuple[MetricRow, int]] = []

    def log(self, row: MetricRow) -> None:
        self.seen.append((row, len(read_metrics(self._path))))

    def finish(self, state: EndState, headline: Mapping[str, float]) -> None:
        pass


def test_trackers_get_what_is_in_the_file(path: Path, tmp_path: Path) -> None:
    """Each line once it is written, as numbers; no line that was refused, and none again."""
    reader, trackers = Reader(path), Trackers()
    trackers.add(reader)
    with MetricsWriter(path, tmp_path / "tb", trackers) as writer:
        writer.log(1, "sft", {"train/loss": 3})
        with pytest.raises(ValueError, match="train/loss"):
            writer.log(2, "sft", {"train/loss": float("nan")})
        writer.log(1, "ppo", {"train/loss": 2.5})
        writer.truncate("ppo", 0)
    (first, second) = reader.seen
    assert first == (MetricRow("sft", 1, first[0].time, {"train/loss": 3.0}), 1)
    assert second == (MetricRow("ppo", 1, second[0].time, {"train/loss": 2.5}), 2)
    assert first[0].time == read_metrics(path)[0]["time"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"stage": "sft"}'])
def test_a_broken_line_is_named(path: Path, line: str) -> None:
    path.write_text(f'{{"stage": "sft", "step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


@settings(max_examples=25)  # a file each
@given(st.floats(-3e38, 3e38))
def test_numbers_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, value: float
) -> None:
    directory = tmp_path_factory.mktemp("metrics")
    with MetricsWriter(directory / "metrics.jsonl", directory / "tb") as writer:
        writer.log(1, "ppo", {"actor/ppo_kl": value})
    assert read_metrics(directory / "metrics.jsonl")[0]["actor/ppo_kl"] == value
