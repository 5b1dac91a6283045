"""The report, from a run directory made of the real writers."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cluster.config.load import parse_recipe
from cluster.metrics import MetricsWriter
from cluster.run_directory import RunDirectory
from cluster.types import ATTACK_VECTORS, RATINGS, RISK_CATEGORIES, Message, PreferencePair, Prompt
from pipelines.judgements import ORACLE, StageEvaluation, evaluate_judgements
from pipelines.report import headline, label, percent, seconds, write_report
from pipelines.reward_accuracy import evaluate_reward_model
from pipelines.reward_metrics import calibrate_safety
from pipelines.samples import Sample, write_samples
from pipelines.summary import write_summary

RECIPE = {
    "name": "tiny",
    "seed": 7,
    "data": {"tiny_world": {}},
    "model": {"make": {}},
}
HOSTILE = '<script>alert("x")</script> & <b>'
PPO_METRICS = (
    "critic/score/mean",
    "critic/rewards/mean",
    "reward/safety/mean",
    "reward/helpfulness/mean",
    "actor/reference_kl",
    "actor/ppo_kl",
    "actor/pg_clipfrac",
    "critic/vf_explained_var",
    "reward/decided_by_safety",
    "response_length/mean",
    "response_length/clip_ratio",
    "rollout/logprob_diff_mean",
)


def a_prompt(number: int, kind: str) -> Prompt:
    adversarial = kind == "adversarial"
    text = HOSTILE if number == 0 else f"{kind} question {number}: " + "how do I do it? " * 3
    return Prompt(
        id=f"{kind}-{number:04d}",
        messages=(Message("user", text),),
        risk_category=RISK_CATEGORIES[number % 3] if adversarial else None,
        attack_vector=ATTACK_VECTORS[number // 3 % 7] if adversarial else None,
        adversarial=adversarial,
        borderline=kind == "borderline",
        source="test",
    )


def answers(stage: str, violating: float, rng: np.random.Generator) -> list[Sample]:
    samples = []
    for kind, count in (("adversarial", 210), ("benign", 60), ("borderline", 30)):
        for number in range(count):
            draw = float(rng.random())
            if kind == "adversarial":
                verdict = "violation" if draw < violating else "good_refusal"
            elif kind == "benign":
                verdict = "helpful" if draw < 0.98 else "garbage"
            else:
                verdict = "helpful" if draw < 0.8 else "blunt_refusal"
            response = f"{stage} says {verdict} " + "word " * 25 + "unbroken" * 12
            samples.append(
                Sample(
                    prompt=a_prompt(number, kind),
                    response=HOSTILE if number == 0 else response,
                    safety=float(rng.normal(-2 if verdict == "violation" else 3)),
                    helpfulness=float(rng.normal(1)),
                    decided_by="safety" if kind == "adversarial" else "helpfulness",
                    verdict=verdict,
                    step=40,
                    policy_version=40,
                    finish_reason="length" if draw > 0.97 else "stop",
                )
            )
    return samples


def pairs(rng: np.random.Generator) -> list[tuple[PreferencePair, float, float]]:
    rows = []
    for number in range(300):
        chosen_safe = number % 3 != 0
        pair = PreferencePair(
            prompt=a_prompt(number, "adversarial"),
            chosen="a",
            rejected="b",
            axis="safety",
            rating=RATINGS[number % 4],
            chosen_safe=chosen_safe,
            rejected_safe=number % 3 == 2,
        )
        score = float(rng.normal(2 if chosen_safe else -1))
        rows.append((pair, score, float(score - rng.normal(1.5, 1.2))))
    return rows


def make_run(
    root: Path, judged: bool = True, metrics: tuple[str, ...] = PPO_METRICS
) -> RunDirectory:
    rng = np.random.default_rng(0)
    with RunDirectory.create(root, parse_recipe(RECIPE)) as run:
        for stage, violating in (("sft", 0.52), ("ppo", 0.012)):
            samples = answers(stage, violating, rng)
            write_samples(run.samples_path(stage), samples)
            verdicts = [(s.prompt, s.verdict if judged else None) for s in samples]
            found = evaluate_judgements(verdicts, ORACLE if judged else None)
            result = {"seconds": 80.5, "evaluation": found.model_dump(mode="json")}
            run.complete_stage(stage, result)
        for axis in ("safety", "helpfulness"):
            rows = pairs(rng)
            measured = evaluate_reward_model(axis, rows)
            result = {"seconds": 20.0, "evaluation": measured.model_dump(mode="json")}
            safety = calibrate_safety(rows) if axis == "safety" else None
            result["safety_calibration"] = safety and safety.model_dump(mode="json")
            run.complete_stage(f"reward_{axis}", result)
        with MetricsWriter(run.metrics_path, run.tensorboard_dir) as writer:
            for step in range(1, 41):
                values = {name: float(rng.random()) * 0.2 + step / 60 for name in metrics}
                values |= {"timing/rollout": 1.0, "timing/learn": 2.0}
                if step % 5 == 0:
                    values["validation/reward"] = step / 10
                writer.log(step, "ppo", values)
            for stage in ("sft", "reward_safety", "reward_helpfulness"):
                for step in range(1, 31):
                    values = {"train/loss": 3 / step, "train/learning_rate": 2e-5 * (1 - step / 40)}
                    writer.log(step, stage, values)
        write_summary(run, {"start_up": 41.0, "total": 305.0})
        run.set_status("succeeded")
    return run


class Page(HTMLParser):
    """What a browser would fetch, and the text and cells that it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and not (
                value or ""
            ).startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "aria-label":
                self.labels.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


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
    # PPO, three supervised stages, the safety reward model, the helpfulness reward model.
    assert page.tags.count("svg") == len(page.labels) == 12 + 3 * 2 + 3 + 2
    assert "Not recorded" not in page.text
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
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
    assert f"Violations {percent(found.violations.rate)} (" in Page(html).text


def test_texts_of_users_and_models_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics=())
    (sample, *_) = answers("sft", 0.5, np.random.default_rng(0))
    assert sample.response == HOSTILE
    # Shown are prompts that both stages answered: this one alone.
    write_samples(run.samples_path("ppo"), [sample])
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;b&gt;") == 3
    assert "<script" not in html


def test_without_a_judge_nothing_is_made_up(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", judged=False, metrics=PPO_METRICS[:3])
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Violations not judged, helpful not judged." in page.text
    assert 'class="heat"' not in run.report_path.read_text(encoding="utf-8")
    assert "Not recorded: reward/helpfulness/mean, actor/reference_kl" in " ".join(
        page.text.split()
    )


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", parse_recipe(RECIPE)) as run:
        run.set_status("failed", "sft", "CUDA\nout of memory")
        page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Nothing was evaluated in this run." in page.text
    assert "failed: CUDA out of memory" in page.text


def test_headline_by_hand() -> None:
    prompts = [a_prompt(number, "adversarial") for number in range(20)]

    def judged(bad: int) -> StageEvaluation:
        rows = [(p, "violation" if n < bad else "safe") for n, p in enumerate(prompts)]
        return evaluate_judgements(rows, "some/judge")

    assert headline({"sft": judged(18), "ppo": judged(0)}) == (
        "Violations 90.0\u00a0% (69.9\u201397.2) → 0.0\u00a0% (0.0\u201316.1), helpful not judged."
    )
    assert headline({"ppo": judged(18)}).startswith("Violations 90.0\u00a0% (69.9\u201397.2), ")


def test_words_for_people() -> None:
    assert [seconds(s) for s in (0.1234, 59.2, 61, 3725)] == [
        "0.123\u00a0s",
        "59.2\u00a0s",
        "1\u00a0min 1\u00a0s",
        "1\u00a0h 2\u00a0min",
    ]
    assert label("non_english") == "non-English"
    assert label("unqualified_advice") == "unqualified advice"


@pytest.mark.browser
def test_a_browser_shows_it_without_sideways_scrolling(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    report = write_report(make_run(tmp_path / "run"))
    # The report has no script. This page around it measures it in frames, because a headless
    # window has a least width of its own.
    frame = "<iframe src='{}' width={} height=900 style='border:0'></iframe>"
    probe = tmp_path / "probe.html"
    probe.write_text(
        "".join(frame.format(report.as_uri(), width) for width in (400, 1200))
        + "<script>onload = () => { for (const f of document.querySelectorAll('iframe')) {"
        "const d = f.contentDocument; const all = name => d.querySelectorAll(name);"
        "document.body.append(JSON.stringify({over: d.documentElement.scrollWidth - "
        "d.documentElement.clientWidth, wide: f.clientWidth,"
        "cells: all('td.cell').length, results: all('#results tr').length,"
        "colour: getComputedStyle(all('td.cell')[0]).backgroundColor})) } }</script>"
    )
    profile = tmp_path / "profile"
    profile.mkdir()
    command = [browser, "--headless", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={profile}"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += ["--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = [json.loads(text) for text in re.findall(r'\{"over".*?\}', done.stdout)]
    assert [found["wide"] for found in told] == [400, 1200]
    for found in told:
        assert found["over"] <= 0
        assert found["cells"] == 42
        assert found["results"] == 9  # the head, the judge and seven rates
        assert found["colour"] not in ("rgba(0, 0, 0, 0)", "")
