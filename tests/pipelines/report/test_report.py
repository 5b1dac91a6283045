"""The report, from a run directory made of the real writers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.records.plan import PREVIOUS, START
from rayward.cluster.records.rates import StageEvaluation
from rayward.cluster.records.samples import write_samples
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.pipelines.report.report import write_report
from rayward.pipelines.report.words import percent
from tests.report_run import PPO_METRICS, RECIPE, STAGES, a_sample, answers, make_run, measure
from tests.report_stages import HOSTILE, a_prompt


class Page(HTMLParser):
    """What a browser would fetch, and the text and cells that it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[str] = []  # the charts' descriptions
        self.ids: list[str] = []
        self.targets: list[str] = []  # of links within the page
        self._text = ""
        self.feed(html)

    @property
    def text(self) -> str:
        return " ".join(self._text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._text += " " if tag in ("td", "th") else ""
        known = {name: value or "" for name, value in attrs}
        if "id" in known:
            self.ids.append(known["id"])
        if known.get("role") == "img":
            self.pictures.append(known["aria-label"])
        for name in {"src", "href", "xlink:href", "srcset", "data"} & known.keys():
            if known[name].startswith("#"):
                self.targets.append(known[name][1:])
            else:
                self.fetched.append(f"{tag} {name}={known[name]}")

    def handle_data(self, data: str) -> None:
        self._text += data


def page_of(run: RunDirectory) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def html(run: RunDirectory) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_is_self_contained_and_has_every_chart(run: RunDirectory, html: str) -> None:
    page = Page(html)
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    # Results by stage and in the plane; scores of two models on three kinds of prompt; the safety
    # and the helpfulness model; rejection sampling; PPO's rewards, distance, gate, policy, critic,
    # answers, sampler, speed; its time; red teaming by round; and the fits of SFT, safety SFT, two
    # reward models, rejection sampling and context distillation.
    ppo = 4 + 2 + 2 + 5 + 4 + 2 + 2 + 2
    expected = 3 + 1 + 2 * 3 + 3 + 2 + 3 + ppo + 1 + 1 + (2 + 2 + 3 + 3 + 2 + 2)
    assert page.tags.count("svg") == len(page.pictures) == expected
    assert all(len(text) > 60 for text in page.pictures)
    assert "Not recorded" not in page.text
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert write_report(run).read_text(encoding="utf-8") == html


def test_the_headline_and_the_cells_are_the_stages_numbers(run: RunDirectory, html: str) -> None:
    result = run.stage_result("evaluation/sft")
    assert result is not None
    found = StageEvaluation.model_validate(result["evaluation"])
    assert found.violations is not None
    assert len(found.cells) == 21
    shown = re.findall(r'--share: ([\d.]+)" title="[^"]*">[^<]*<small>(\d+)/(\d+)</small>', html)
    # After SFT and after context distillation, and red teaming's.
    assert len(shown) == 3 * 21
    assert sum(int(count) for _, count, _ in shown[:21]) == found.violations.count
    assert sum(int(total) for _, _, total in shown[:21]) == found.adversarial_prompts == 210
    text = Page(html)._text  # with its no-break spaces
    assert f"Violations {percent(found.violations.rate)} (" in text


def test_accuracy_is_told_by_rating_safety_and_category(run: RunDirectory, html: str) -> None:
    result = run.stage_result("reward_safety")
    assert result is not None
    found = result["evaluation"]
    rows = [rate for part in ("by_rating", "by_safety", "by_category") for rate in found[part]]
    assert len(rows) == 4 + 3 + 3
    for part in ("by_rating", "by_safety", "by_category"):
        for rate in found[part].values():
            low, high = (f"{100 * rate[end]:.1f}" for end in ("low", "high"))
            cell = (
                rf"{low}\W+{high}</small>\s*<small class=\"count\">{rate['count']}/{rate['total']}<"
            )
            assert re.search(cell, html), (part, rate)


def test_texts_of_users_and_models_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics=("timing/step",))
    (sample, *_) = answers("sft", 0.5, np.random.default_rng(0))
    assert sample.response == HOSTILE
    # Shown are prompts that both stages answered: this one alone.
    write_samples(run.samples_path("context_distillation"), [sample])
    sft = run.stage_result("sft")
    assert sft is not None
    run.complete_stage("sft", sft | {"taken_from": "/runs/<b>other"})
    html = write_report(run).read_text(encoding="utf-8")
    # The third time as the name of a group of ToxiGen.
    assert html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;b&gt;") == 3 + 1
    assert "<script" not in html
    # Of the other run's path, its name.
    assert "taken from <code>&lt;b&gt;other</code>" in html


def test_without_a_judge_nothing_is_made_up(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", PPO_METRICS[:3], judged=False))
    assert "Violations not judged, helpful not judged." in page.text
    assert "violations" not in page.ids
    assert "Not recorded: reward/helpfulness/mean." in page.text
    # What the reward models say is told as such.
    assert "Safety model's probability, mean over adversarial prompts (%)" in page.text
    assert not any("Plane" in text or "False refusals" in text for text in page.pictures)


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", parse_recipe(RECIPE)) as run:
        run.set_status("failed", "sft", "CUDA\nout of memory")
        page = page_of(run)
    assert "Nothing was evaluated in this run." in page.text
    assert "No stage is finished." in page.text
    assert "failed: CUDA out of memory" in page.text
    assert page.pictures == []


def test_a_stage_that_was_cut_short_has_its_curves(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", parse_recipe(RECIPE)) as run:
        with MetricsWriter(run.metrics_path, run.tensorboard_dir) as writer:
            writer.log(1, "ppo", dict.fromkeys(PPO_METRICS, 0.5))
        page = page_of(run)
    assert any("Explained variance" in text for text in page.pictures)
    assert "advantage estimator gae (with a critic)" in page.text


def test_a_start_that_no_stage_made_comes_first(tmp_path: Path) -> None:
    stages = ("reward_safety", "reward_helpfulness", "ppo")
    run = make_run(tmp_path / "run", metrics=("timing/step",), stages=stages)
    few = [a_sample(a_prompt(3, "benign"), safety=1.0, helpfulness=2.0, verdict="helpful")]
    measure(run, START, few)
    page = page_of(run)
    assert "Start model → after PPO; 95 % Wilson" in page.text
    assert any(": start model 1 answers, mean 1.00; after PPO 60" in t for t in page.pictures)
    # PPO started from it, so that it is held against it: the one prompt they share.
    assert "start model after PPO from start model judge oracle oracle" in page.text


def test_the_model_now_in_use_is_shown_and_is_no_end_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", stages=("sft", "safety_sft"))
    before = page_of(run).text
    # It violates on all of 210.
    measure(run, PREVIOUS, answers(PREVIOUS, 1.0, np.random.default_rng(1)))
    page = page_of(run)
    headline = "After SFT → after safety SFT; 95 % Wilson"
    assert headline in before
    assert headline in page.text
    assert "Share previous model after SFT after safety SFT" in page.text
    assert any("previous model 100.0\u00a0% (98.2\u00a0% to 100.0" in t for t in page.pictures)


def test_a_run_in_rounds_tells_each(tmp_path: Path) -> None:
    stages = tuple(stage for stage in STAGES if stage != "context_distillation")
    page = page_of(make_run(tmp_path / "run", ("timing/step", "actor/entropy"), stages, rounds=2))
    assert len(page.ids) == len(set(page.ids))
    assert "2 rounds. A number behind a stage is its round" in page.text
    assert "after PPO 2 from rejection sampling 2" in page.text
    # A round begins anew, so that SFT 2 came from no measured policy.
    assert "after SFT 2 after safety SFT 2 from SFT 2" in page.text
    assert "Red teaming 2, against the policy after PPO 2" in page.text
    assert "kept from earlier rounds: 0." in page.text
    assert "kept from earlier rounds: 2." in page.text
    assert any("Histogram of Safety model 2: scores" in text for text in page.pictures)
    assert sum("Entropy, mean" in text for text in page.pictures) == 2
    assert sum(text.startswith("Line chart of Learning rate") for text in page.pictures) == 10


def test_time_is_told_by_stage_and_nothing_twice(html: str) -> None:
    text = Page(html).text
    table = text[text.index("Stage time measuring its policy") :]
    assert "SFT 30 s 6 s safety SFT 30 s 6 s safety reward model 20 s \u2013 " in table
    assert "PPO 1 min 20 s 6 s red teaming 9 s \u2013 context distillation 30 s 6 s" in table
    # The phase evaluation/ppo is among the stages' times already.
    assert "Rest of the run time ray 41 s total 5 min 5 s Where" in table
