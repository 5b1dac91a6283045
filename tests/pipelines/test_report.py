"""The report, from a run directory made of the real writers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cluster.config.load import parse_recipe
from cluster.metrics import MetricsWriter
from cluster.run_directory import RunDirectory
from pipelines.judgements import StageEvaluation
from pipelines.report import write_report
from pipelines.report_words import percent
from pipelines.samples import write_samples
from tests.report_run import (
    HOSTILE,
    PPO_METRICS,
    RECIPE,
    a_prompt,
    a_sample,
    answers,
    make_run,
)


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
    # Scores of two models on three kinds of prompt; the safety and the helpfulness model; PPO's
    # rewards, distance, gate, policy, critic, answers, sampler, speed; its time; and SFT and the
    # two reward trainings.
    expected = 2 * 3 + 3 + 2 + (4 + 2 + 2 + 5 + 4 + 2 + 2 + 2) + 1 + 2 + 3 + 3
    assert page.tags.count("svg") == len(page.pictures) == expected
    assert all(len(text) > 60 for text in page.pictures)
    assert "Not recorded" not in page.text
    assert len(page.ids) == len(set(page.ids))
    assert set(page.targets) <= set(page.ids)
    assert write_report(run).read_text(encoding="utf-8") == html


def test_the_headline_and_the_cells_are_the_stages_numbers(run: RunDirectory, html: str) -> None:
    result = run.stage_result("sft")
    assert result is not None
    found = StageEvaluation.model_validate(result["evaluation"])
    assert found.violations is not None
    assert len(found.cells) == 21
    shown = re.findall(r'--share: ([\d.]+)" title="[^"]*">[^<]*<small>(\d+)/(\d+)</small>', html)
    assert len(shown) == 42
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
    write_samples(run.samples_path("ppo"), [sample])
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;b&gt;") == 3
    assert "<script" not in html


def test_without_a_judge_nothing_is_made_up(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", judged=False, metrics=PPO_METRICS[:3]))
    assert "Violations not judged, helpful not judged." in page.text
    assert "violations" not in page.ids
    assert "Not recorded: reward/helpfulness/mean." in page.text


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
    run = make_run(tmp_path / "run", metrics=("timing/step",))
    started = run.stage_result("sft")
    assert started is not None
    run.complete_stage("start", {"seconds": 6.0, "evaluation": started["evaluation"]})
    write_samples(
        run.samples_path("start"), [a_sample(a_prompt(3, "benign"), safety=1.0, helpfulness=2.0)]
    )
    page = page_of(run)
    assert "Before PPO illicit and criminal" in page.text
    assert any(": before PPO 1 answers, mean 1.00; after PPO 60" in t for t in page.pictures)
