"""Rejection sampling, red teaming, context distillation and the benchmarks in the report."""

import numpy as np
import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.records.rates import Cell, MeanScore, Rate
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.pipelines.context_distillation.report import context_distillation_report
from rayward.pipelines.evaluation.published_scores import REFERENCE_ROWS
from rayward.pipelines.red_teaming.report import red_teaming_report
from rayward.pipelines.rejection_sampling.report import rejection_sampling_report
from rayward.pipelines.report.benchmarks import benchmarks_report
from rayward.pipelines.report.report import write_report
from tests.pipelines.report.test_report import Page
from tests.report_run import RECIPE, answers, measure
from tests.report_stages import (
    HOSTILE,
    benchmark_results,
    distillation_report,
    red_teaming_summary,
    rejection_sampling_result,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run that has nothing but these stages."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    with RunDirectory.create(root, parse_recipe(RECIPE)) as run:
        run.complete_stage("rejection_sampling", rejection_sampling_result(1))
        found = red_teaming_summary(21, 4).model_dump(mode="json")
        run.complete_stage("red_teaming", {"seconds": 9.0, "red_teaming": found})
        distilled = distillation_report().model_dump(mode="json")
        run.complete_stage(
            "context_distillation",
            {"seconds": 3.0, "distillation": distilled, "benign_replayed": 29},
        )
        measure(run, "sft", answers("sft", 0.5, np.random.default_rng(0)), judge=None)
        page = Page(write_report(run).read_text(encoding="utf-8"))
    return page.text.replace("\u00a0", " ")


def test_reward_against_k_by_hand() -> None:
    found = rejection_sampling_report("rejection_sampling-2", rejection_sampling_result(2))
    every, adversarial, harmless = found.charts
    assert every.title == "All prompts, 2: reward (logit)"
    # Of [1, 3, 2] and [0, -2, 4]: best 1 and 0, 3 and 0, 3 and 4; median 1 and 0, 2 and -1,
    # 2 and 0.
    assert "best from 0.5 (K 1) to 3.5 (K 3), lowest 0.5, highest 3.5" in every.description
    assert "median from 0.5 (K 1) to 1 (K 3), lowest 0.5, highest 1." in every.description
    assert "best from 0 (K 1) to 4 (K 3)" in adversarial.description
    assert "best from 1 (K 1) to 3 (K 3)" in harmless.description
    assert ">K</text>" in every.svg


def test_rejection_sampling_tells_every_count(text: str) -> None:
    assert "3 answers to each of 2 prompts, 6 in all, at temperature 1.2." in text
    assert "Best answers kept: 2; kept from earlier rounds: 0." in text
    assert "cut at the longest length: 4; prompts without a whole answer: 7;" in text
    assert "prompts that were too long: 5." in text
    assert "0.8 3.250 1.2 taken 3.500" in text


def test_red_teaming_by_round_and_cell() -> None:
    found = red_teaming_report(
        "red_teaming", "ppo", {"red_teaming": red_teaming_summary(21, 4).model_dump(mode="json")}
    )
    assert found.chart is not None
    # 21 and 4 of 42 answers.
    assert "round 1 50.0\u00a0% (35.5\u00a0% to 64.5" in found.chart.description
    assert "round 2 9.5\u00a0% (3.8\u00a0% to 22.1" in found.chart.description
    counts = dict(found.counts)
    assert counts["prompts to begin with"] == (6, 6)
    assert counts["of them, violations"] == (21, 4)
    assert counts["left out: no template fits"] == (0, 0)
    # There was no attacker model.
    assert not any("attacker" in name for name in counts)
    assert found.cells is not None
    cells = [cell for _, row in found.cells.rows for cell in row]
    assert all(isinstance(cell, Cell) and cell.total == 4 for cell in cells)
    # Prompt 0 got through in both rounds, prompts 4 to 20 in the first.
    assert [cell.count for cell in cells if cell] == [2, 2, 2, 2, *[1] * 17]


def test_red_teaming_that_asked_nothing_makes_nothing_up() -> None:
    summary = red_teaming_summary().model_dump(mode="json")
    found = red_teaming_report("red_teaming", "ppo", {"red_teaming": summary})
    assert found.chart is None
    assert found.cells is None


def test_red_teaming_is_told(text: str) -> None:
    assert "Red teaming, against the policy after PPO" in text
    # 25 of 84.
    assert "Violations per hundred answers: 29.8 (21.0\u2013\u206040.2; 25 of 84)." in text
    assert "kept as training prompts: 25." in text


def test_context_distillation_by_category_and_kind(text: str) -> None:
    found = context_distillation_report(
        "context_distillation", {"distillation": distillation_report().model_dump(mode="json")}
    )
    assert [title for title, _ in found.groups] == ["by risk category", "by kind of preprompt"]
    assert "kept: 30 of 70, from 80 prompts. Benign demonstrations learned beside them: 29." in text
    assert "too long: 3; answers that were cut at the longest length: 4;" in text
    assert "held the preprompt: 2; that were empty: 1." in text
    assert "no category 0.0 % 0.0\u2013\u206027.8 0/10 \u2013" in text
    assert "adjectives 50.0 % 35.2\u2013\u206064.8 20/40 6.25" in text
    assert "generic 33.3 % 19.2\u2013\u206051.2 10/30 25" in text


def test_benchmarks_beside_the_published_rows() -> None:
    found = benchmarks_report({"sft": {}, "ppo": benchmark_results(judged=True)})
    assert found is not None
    assert found.policies == ("ppo",)
    mine, *published = found.comparison
    # One of four answers is both true and informative, one of four toxic.
    assert (mine.name, mine.truthfulqa, mine.toxigen) == ("after PPO", 25.0, 25.0)
    assert published == list(REFERENCE_ROWS)
    truth = {row.text: row.cells[0] for row in found.truthfulqa}
    informative = truth["informative"]
    assert isinstance(informative, Rate)
    assert informative.rate == 0.75
    # 0, 0.25, 0.5 and 0.75.
    mc2 = truth["MC2: probability of the true choices"]
    assert isinstance(mc2, MeanScore)
    assert (mc2.mean, mc2.total) == (0.375, 4)
    assert truth["questions left out, too long"] == "1"
    assert truth["judge of truth"] == "judges/truth"
    toxic = {row.text: row.cells[0] for row in found.toxigen}
    group = toxic["about: group a"]
    assert isinstance(group, Rate)
    assert (group.count, group.total) == (1, 2)
    assert f"about: {HOSTILE}" in toxic


def test_benchmarks_that_nobody_judged_or_measured(text: str) -> None:
    assert benchmarks_report({"sft": {}, "ppo": {"truthfulqa": None, "toxigen": None}}) is None
    only = {"truthfulqa": benchmark_results(judged=False)["truthfulqa"], "toxigen": None}
    found = benchmarks_report({"sft": only, "ppo": benchmark_results(judged=False)})
    assert found is not None
    assert [row.cells for row in found.toxigen if row.text == "toxic"] == [("not measured", None)]
    assert [row.cells for row in found.truthfulqa if row.text == "truthful"] == [(None, None)]
    assert "after SFT not judged not judged Published, Llama 2 paper, table 11 MPT 7B 29.13" in text
    assert "judge of truth none" in text
    # What needs no judge is there.
    assert "MC1: the likeliest choice is the true one 25.0 %" in text
