"""Runs that were not submitted over HTTP: what is listed of them, and what is not known."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rayward.cluster.config.load import parse_recipe
from rayward.cluster.records.samples import Sample, write_samples
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.cluster.types import Message, Prompt
from rayward.services.http.errors import ApiError
from rayward.services.jobs.copies import Copies
from rayward.services.jobs.history import History
from rayward.services.jobs.ray_jobs import RayJob
from rayward.services.jobs.runs import RunsRoot
from rayward.services.jobs.schemas import JobState

RECIPE = parse_recipe({"name": "mine", "data": {"tiny_world": {}}, "model": {"make": {}}})


def history(root: Path) -> History:
    runs = RunsRoot(str(root))
    return History(runs, Copies(runs))


def ray_job(command: str, state: JobState = "running", name: str = "raysubmit_Abc") -> RayJob:
    started = datetime.now(UTC) + timedelta(minutes=1)
    return RayJob(name, state, command, None, started, None)


def test_runs_by_hand_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("First_1", "second", "-odd", "not a run"):
        with RunDirectory.create(tmp_path / name, RECIPE) as run:
            run.set_status("succeeded")
    (tmp_path / "third").mkdir()
    with RunDirectory.create(tmp_path / "fourth", RECIPE) as run:
        run.set_status("failed", error="E: it broke")
        running = RunDirectory.create(tmp_path / "fifth", RECIPE)
        running.set_status("running", "ppo")
        listed = {job.id: job for job in history(tmp_path).all([], [])}
        # An id is a part of a URL; other names are not shown.
        assert listed.keys() == {"First_1", "second", "fourth", "fifth"}
        states = {name: job.state for name, job in listed.items()}
        assert states == {
            "First_1": "succeeded",
            "second": "succeeded",
            "fourth": "failed",
            "fifth": "running",
        }
        job = listed["fourth"]
        assert (job.origin, job.name, job.error) == ("directory", "mine", "E: it broke")
        assert (job.kind, job.priority, job.attempt) == (None, None, None)
        assert job.submitted is not None
        assert job.submitted.utcoffset() is not None
        assert listed["fifth"].stage == "ppo"
        # Its process is no more, and had no time to say so.
        (tmp_path / "fifth" / ".lock").write_text(
            (tmp_path / "fifth" / ".lock").read_text().replace("process ", "process 9999999")
        )
        found = history(tmp_path).other("fifth", [])
        assert found is not None
        assert (found.job.state, found.job.stage) == ("interrupted", None)
        running.close()


def test_what_is_no_run_of_ours_breaks_nothing(tmp_path: Path) -> None:
    for content in ("", "[]", '{"run": 3, "created": "yesterday"}', "\ufffd"):
        folder = tmp_path / f"odd{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in ("manifest.json", "status.json", "recipe.yaml"):
            (folder / name).write_text(content)
    jobs = history(tmp_path).all([], [])
    assert [job.state for job in jobs] == ["interrupted"] * 4
    assert {(job.name, job.submitted) for job in jobs} == {(None, None)}
    for job in jobs:
        found = history(tmp_path).other(job.id, [])
        assert found is not None
        assert found.detail().stages_done == []


@pytest.mark.parametrize(
    "recipe",
    [
        "d: 2024-01-01",
        "{1: a}",
        "a: &a [*a]",
        "a: .nan",
        "a: !!set {b, c}",
        f"a: {'[' * 400}{']' * 400}",
        f"a: {'[' * 4000}{']' * 4000}",
        "a: !!binary aGk=",
    ],
)
def test_a_recipe_that_is_no_json_is_not_told(tmp_path: Path, recipe: str) -> None:
    RunDirectory.create(tmp_path / "one", RECIPE).close()
    found = history(tmp_path).other("one", [])
    assert found is not None
    assert found.detail().config == RECIPE.model_dump(mode="json")
    (tmp_path / "one" / "recipe.yaml").write_text(recipe)
    assert found.detail().config is None


def test_half_a_surrogate_pair_in_a_name_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "manifest.json").write_text('{"run": "a\\ud800"}')
    (job,) = history(tmp_path).all([], [])
    assert job.model_dump_json()
    assert job.name == "a\\ud800"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SECRET@bucket/runs?endpoint_override=SECRET", "s3://bucket/runs/one"),
        ("s3://bucket/runs@home?region=us-east-1", "s3://bucket/runs@home/one"),
        ("fsspec+file:///runs", "fsspec+file:///runs/one"),
    ],
)
def test_where_a_run_is_says_no_login(uri: str, shown: str) -> None:
    assert RunsRoot(uri).place_of("one") == shown


def test_a_ray_job_is_its_run_if_it_says_where(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "one", RECIPE) as run:
        run.set_status("running", "sft")
    job = ray_job(f"cd x && /a/bin/rayward run r.yaml --out {tmp_path}/one", "running")
    (listed,) = history(tmp_path).all([], [job])
    assert (listed.id, listed.origin, listed.state) == ("one", "ray", "running")
    for name in ("one", "raysubmit_Abc"):
        found = history(tmp_path).other(name, [job])
        assert found is not None
        assert (found.job.id, found.ray_job) == ("one", job)
    killed = ray_job(job.entrypoint, "cancelled")
    assert [one.state for one in history(tmp_path).all([], [killed])] == ["cancelled"]


@pytest.mark.parametrize("out", ["", " --out runs/one", " --out=./one"])
def test_a_ray_job_is_the_run_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Relative paths, as the manifests have them, are relative to wherever Ray started the job."""
    # As Ray's job supervisor sets it.
    environment = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.setenv(environment, '{"metadata": {"job_submission_id": "raysubmit_Abc"}}')
    with RunDirectory.create(tmp_path / "one", RECIPE) as run:
        run.set_status("running", "sft")
    job = ray_job(f"rayward run demo{out}")
    past = history(tmp_path)
    (listed,) = past.all([], [job])
    assert (listed.id, listed.origin, listed.state) == ("one", "ray", "running")
    stranger = ray_job(job.entrypoint, name="raysubmit_Def")
    assert {one.id for one in past.all([], [job, stranger])} == {"one", "raysubmit_Def"}
    # Killed, and resumed in another job, which only one with a path can be.
    monkeypatch.setenv(environment, '{"metadata": {"job_submission_id": "raysubmit_Ghi"}}')
    with RunDirectory.resume(tmp_path / "one", RECIPE) as run:
        run.set_status("running", "sft")
    killed = replace(job, state="cancelled")
    later = replace(
        ray_job(job.entrypoint + ("" if out else " --out one"), name="raysubmit_Ghi"),
        started=datetime.now(UTC) + timedelta(minutes=2),
    )
    for order in ([killed, later], [later, killed]):
        for one in (past, history(tmp_path)):
            (listed,) = one.all([], order)
            assert (listed.id, listed.state) == ("one", "running")
            found = one.other("raysubmit_Abc", order)
            assert found is not None
            assert found.ray_job == later


@pytest.mark.parametrize(
    "out", ["", " --out=elsewhere", " --out /elsewhere/one", " --out one", " --out"]
)
def test_a_ray_job_elsewhere_is_listed_by_its_own_id(tmp_path: Path, out: str) -> None:
    RunDirectory.create(tmp_path / "one", RECIPE).close()
    job = ray_job(f"rayward run 'r.yaml'{out}")
    assert job.is_rayward
    listed, by_hand = history(tmp_path).all([], [job])
    assert (listed.id, listed.origin, listed.run) == ("raysubmit_Abc", "ray", None)
    assert (by_hand.id, by_hand.origin) == ("one", "directory")
    found = history(tmp_path).other("raysubmit_Abc", [job])
    assert found is not None
    assert found.detail().config is None
    assert history(tmp_path).other("another", [job]) is None


@pytest.mark.parametrize("command", ["rayward serve", "echo rayward run", "python 'run"])
def test_other_commands_make_no_runs(command: str) -> None:
    assert ray_job(command).is_rayward is (command == "echo rayward run")


def test_metrics_and_samples_are_read_in_pages(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "one", RECIPE) as run:
        with MetricsWriter(run.metrics_path, run.tensorboard_dir) as metrics:
            for step in range(5):
                metrics.log(step, "sft" if step % 2 else "ppo", {"loss": step / 2})
        prompt = Prompt("p", (Message("user", "Hi"),), None, None, False, False, "test")
        answers = [
            Sample(prompt, f"answer {n}", 0.5, None, None, None, None, None, 1, 1, "stop")
            for n in range(3)
        ]
        write_samples(run.samples_path("ppo"), answers)
        run.complete_stage("ppo", {})
        run.complete_stage("evaluation/ppo", {})
    files = RunsRoot(str(tmp_path)).run("one")
    first, offset = files.metric_rows(None, 0, 2)
    rest, end = files.metric_rows(None, offset, 100)
    assert [row["step"] for row in first + rest] == [*range(5)]
    assert files.metric_rows(None, end, 100) == ([], end)
    assert [row["step"] for row in files.metric_rows("sft", 0, 100)[0]] == [1, 3]
    # In the middle of a line: from the next one on.
    assert files.metric_rows(None, offset - 1, 100) == (rest, end)
    assert files.metric_rows(None, 2**53, 100) == ([], 2**53)
    rows, total = files.sample_rows("ppo", 1, 1)
    assert [(row["response"], row["safety"]) for row in rows] == [("answer 1", 0.5)]
    assert total == 3
    assert files.sample_rows("ppo", 2**53, 1) == ([], 3)
    with pytest.raises(ApiError) as refused:
        files.sample_rows("sft", 0, 1)
    assert refused.value.status == 404
    assert files.samples() == ["ppo"]
    assert files.stages_done() == ["ppo", "evaluation/ppo"]
    (tmp_path / "one" / "metrics.jsonl").write_text("no\n")
    with pytest.raises(ApiError) as refused:
        files.metric_rows(None, 0, 1)
    assert (refused.value.status, refused.value.code) == (409, "unreadable")
