"""Trackers, with the real libraries and no server: what they hold is read back."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import wandb
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record

import rayward.pipelines.runner.run_recipe
from rayward.cluster.config.load import load_recipe, parse_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.topology import is_topology
from rayward.cluster.errors import InputError, RunStopped
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.interface import MetricRow
from rayward.cluster.trackers.metrics import MetricsWriter, read_metrics
from rayward.cluster.trackers.ray_gauges import RayGauges
from rayward.cluster.trackers.tracking import Trackers, numbers_of, open_trackers

# Found in a file or a message, it would be a secret told.
SECRET = "5ec7e7" * 8
SCORE = "critic/score/mean"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    # Trackers set defaults in the environment; this notes the values to go back to.
    for name in ("ALLOW_FILE_STORE", "HTTP_REQUEST_TIMEOUT", "HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")
        monkeypatch.delenv(f"MLFLOW_{name}")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()  # it remembers keys


def a_recipe(tracking: dict[str, Any], **settings: object) -> Recipe:
    document = {"name": "tiny", "data": {"tiny_world": {}}, "model": {"make": {}}, **settings}
    return parse_recipe({**document, "tracking": tracking})


def track(
    out: Path, recipe: Recipe, work: Callable[[MetricsWriter, Trackers], None], resume: bool = False
) -> None:
    """A run in which only numbers are written."""
    run = (RunDirectory.resume if resume else RunDirectory.create)(out, recipe)
    with ExitStack() as stack:
        stack.enter_context(run)
        trackers = stack.enter_context(open_trackers(recipe, run))
        writer = MetricsWriter(run.metrics_path, run.tensorboard_dir, trackers)
        work(stack.enter_context(writer), trackers)


def first_half(metrics: MetricsWriter, trackers: Trackers) -> None:
    metrics.log(1, "sft", {"train/loss": 0.5})
    for step in (1, 2, 3):
        metrics.log(step, "ppo", {SCORE: step / 4, "actor/ppo_kl": 0.125})
    raise RunStopped("stopped on request")


def second_half(metrics: MetricsWriter, trackers: Trackers) -> None:
    metrics.truncate("ppo", after_step=2)
    for step in (3, 4):
        metrics.log(step, "ppo", {SCORE: step / 4, "actor/ppo_kl": 0.125})
    trackers.summarize({"stages": [{"name": "ppo", "seconds": 1.5, "judge": "oracle"}]})


def test_mlflow_has_one_run_of_a_run_that_was_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = a_recipe({"mlflow": {"tracking_uri": "store"}}, seed=7)
    with pytest.raises(RunStopped):
        track(tmp_path / "out", recipe, first_half)
    client = MlflowClient(tracking_uri=str(tmp_path / "store"))
    experiment = client.get_experiment_by_name("rayward")
    (stopped,) = client.search_runs([experiment.experiment_id])
    assert (stopped.info.status, stopped.info.run_name) == ("KILLED", "tiny")
    assert stopped.data.metrics == {
        "sft/train/loss": 0.5,
        "ppo/critic/score/mean": 0.75,
        "ppo/actor/ppo_kl": 0.125,
    }
    track(tmp_path / "out", recipe, second_half, resume=True)
    (done,) = client.search_runs([experiment.experiment_id])
    assert (done.info.run_id, done.info.status) == (stopped.info.run_id, "FINISHED")
    history = client.get_metric_history(done.info.run_id, f"ppo/{SCORE}")
    # Step 3 was dropped from metrics.jsonl and written again; a tracker cannot forget.
    assert [(m.step, m.value) for m in history] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
        (3, 0.75),
        (4, 1.0),
    ]
    assert len(read_metrics(tmp_path / "out" / "metrics.jsonl")) == 5
    assert done.data.metrics["summary/stages/ppo/seconds"] == 1.5
    assert done.data.params["seed"] == "7"
    assert done.data.params["ppo.kl.beta"] == "0.01"
    assert not [name for name in done.data.params if name.startswith("tracking")]
    # A resumed run may be on other machines, and MLflow takes no other value for a parameter.
    assert not [name for name in done.data.params if is_topology(name)]
    assert done.data.tags["rayward.version"] == "0.1.0"
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count(f"mlflow: run {done.info.run_id} of experiment rayward at") == 2


def wandb_records(file: Path) -> Iterator[Record]:
    """What W&B has written: a log in LevelDB's format, after a header of 7 bytes."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)  # after the checksum
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def read_wandb(folder: Path) -> dict[str, Any]:
    """What is in a folder of W&B's, once its process has written how the run ended."""
    (file,) = folder.glob("*.wandb")
    until = time.monotonic() + 60
    while not any(record.HasField("exit") for record in wandb_records(file)):
        assert time.monotonic() < until
        time.sleep(0.1)
    found: dict[str, Any] = {"history": [], "axes": {}, "summary": {}, "config": {}}
    for record in wandb_records(file):
        if record.HasField("run"):
            found |= {"id": record.run.run_id, "name": record.run.display_name}
            found |= {"project": record.run.project}
            for item in record.run.config.update:
                found["config"][item.key] = json.loads(item.value_json)
        if record.metric.name and record.metric.step_metric:
            found["axes"][record.metric.name] = record.metric.step_metric
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            found["history"].append({k: v for k, v in row.items() if not k.startswith("_")})
        if record.HasField("summary"):
            for item in record.summary.update:
                name = item.key or "/".join(item.nested_key)
                found["summary"][name] = json.loads(item.value_json)
        if record.HasField("exit"):
            found["exit"] = record.exit.exit_code
    return found


def test_wandb_has_one_run_of_a_run_that_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    recipe = a_recipe({"wandb": {"mode": "offline", "project": "safety"}}, seed=7)
    with pytest.raises(RunStopped):
        track(tmp_path / "out", recipe, first_half)
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    stopped = read_wandb(folder)
    known = json.loads((tmp_path / "out" / "tracking.json").read_text())
    assert stopped["id"] == known["wandb"]["run_id"]
    assert (stopped["name"], stopped["project"], stopped["exit"]) == ("tiny", "safety", 1)
    assert stopped["summary"]["state"] == "stopped"
    assert stopped["config"]["seed"] == 7
    assert stopped["config"]["ppo"]["kl"]["beta"] == 0.01
    assert "tracking" not in stopped["config"]
    assert stopped["axes"] == {
        "sft/train/loss": "sft/step",
        "ppo/critic/score/mean": "ppo/step",
        "ppo/actor/ppo_kl": "ppo/step",
    }
    assert stopped["history"] == [
        {"sft/train/loss": 0.5, "sft/step": 1},
        {"ppo/critic/score/mean": 0.25, "ppo/actor/ppo_kl": 0.125, "ppo/step": 1},
        {"ppo/critic/score/mean": 0.5, "ppo/actor/ppo_kl": 0.125, "ppo/step": 2},
        {"ppo/critic/score/mean": 0.75, "ppo/actor/ppo_kl": 0.125, "ppo/step": 3},
    ]
    while time.strftime("%Y%m%d_%H%M%S") in folder.name:
        time.sleep(0.1)  # W&B names folders by the second
    track(tmp_path / "out", recipe, second_half, resume=True)
    (again,) = set((tmp_path / "out" / "wandb").glob("offline-run-*")) - {folder}
    done = read_wandb(again)
    # `wandb sync` joins files of one id.
    assert (done["id"], done["exit"]) == (stopped["id"], 0)
    assert [row["ppo/step"] for row in done["history"]] == [3, 4]
    assert done["summary"]["state"] == "succeeded"
    assert done["summary"]["summary/stages/ppo/seconds"] == 1.5
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    said = capsys.readouterr()
    assert said.out == ""
    assert SECRET not in said.err


# Ray passes metrics on every second here and drops them two seconds later, in place of 10 and 20.
PROMETHEUS = """
import time, urllib.request
import ray
from rayward.cluster.trackers import ray_gauges
from rayward.cluster.trackers.interface import MetricRow

def seen():
    try:
        text = urllib.request.urlopen(address, timeout=10).read().decode()
    except OSError:
        return []  # the agent is still starting
    lines = [line for line in text.splitlines() if line.startswith("ray_rayward_test_loss{")]
    return sorted(line[line.index('run="') :] for line in lines)

ray_gauges._AGAIN_AFTER_S = 0.2
gauges = ray_gauges.RayGauges("tiny")
gauges.log(MetricRow("sft", 1, 0.0, {"test/loss": 9.0}))  # before Ray: to nobody
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
address = ray_gauges.metrics_address()
gauges.log(MetricRow("sft", 1, 0.0, {"test/loss": 0.375}))
gauges.log(MetricRow("ppo", 1, 0.0, {"test/loss": 0.5}))
gauges.log(MetricRow("ppo", 2, 0.0, {"test/loss": 0.0625}))
until = time.monotonic() + 90
while not seen() and time.monotonic() < until:
    time.sleep(0.2)
time.sleep(5)
print(seen())
gauges.finish("succeeded", {})
time.sleep(5)
print(seen())
"""


@pytest.mark.engine
def test_prometheus_reads_the_numbers_over_http_until_the_run_ends() -> None:
    """Numbers of a stage that is over, or of a step that takes long, stay."""
    environment = {**os.environ, "RAY_metrics_report_interval_ms": "1000"}
    done = subprocess.run(
        [sys.executable, "-c", PROMETHEUS],
        cwd=Path(__file__).resolve().parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stay = ['run="tiny",stage="ppo"} 0.0625', 'run="tiny",stage="sft"} 0.375']
    assert done.stdout.splitlines() == [repr(stay), "[]"]


def test_two_metrics_never_share_a_gauge(ray_session: None) -> None:
    gauges = RayGauges("tiny")
    gauges.log(MetricRow("sft", 1, 0.0, {"test/one_name": 1.0}))
    with pytest.raises(ValueError, match="'test/one_name' and 'test/one/name'"):
        gauges.log(MetricRow("sft", 1, 0.0, {"test/one/name": 1.0}))
    gauges.finish("failed", {})


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as caught:
        track(tmp_path / "out", a_recipe({name: {}}), second_half)
    assert caught.value.field == f"tracking.{name}"
    assert caught.value.expected == f"the extra: pip install 'rayward[{name}]'"


def test_a_folder_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves a folder `wandb` wherever it runs."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"pip install 'rayward\[wandb\]'"):
        track(tmp_path / "out", a_recipe({"wandb": {}}), second_half)
    monkeypatch.setitem(sys.modules, "wandb", wandb)


@pytest.mark.parametrize("answers", [False, True])
def test_mlflow_that_does_not_answer_is_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            # Takes the connection and says nothing.
            server.listen()
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(InputError, match="an MLflow that answers") as caught:
            track(tmp_path / "out", a_recipe({"mlflow": {"tracking_uri": uri}}), second_half)
    assert time.monotonic() - began < 40  # MLflow's own patience is minutes
    assert (caught.value.field, caught.value.value) == ("tracking.mlflow.tracking_uri", uri)


def test_mlflow_needs_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="or in MLFLOW_TRACKING_URI"):
        track(tmp_path / "none", a_recipe({"mlflow": {}}), second_half)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    track(tmp_path / "out", a_recipe({"mlflow": {}}), second_half)
    client = MlflowClient(tracking_uri=str(tmp_path / "store"))
    assert client.get_experiment_by_name("rayward") is not None


def test_a_login_in_an_address_is_refused_and_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"https://me:{SECRET}@mlflow.example/path"
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\ndata: {tiny_world: {}}\nmodel: {make: {}}\n"
        f"tracking: {{mlflow: {{tracking_uri: '{uri}'}}}}\n"
    )
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(caught.value).startswith(
        "tracking.mlflow.tracking_uri: got 'https://***@mlflow.example'"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        track(tmp_path / "out", a_recipe({"mlflow": {}}), second_half)
    assert SECRET not in str(caught.value)
    assert caught.value.field == "MLFLOW_TRACKING_URI"


def test_wandb_without_a_key_does_not_ask_for_one(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        track(tmp_path / "out", a_recipe({"wandb": {}}), second_half)
    assert str(caught.value).startswith("tracking.wandb: got 'no API key', expected an API key in")


def test_numbers_wait_for_a_tracker_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = a_recipe({"mlflow": {"tracking_uri": "store"}})
    store, away = tmp_path / "store", tmp_path / "away"

    def work(metrics: MetricsWriter, trackers: Trackers) -> None:
        metrics.log(1, "ppo", {SCORE: 0.25})
        store.rename(away)
        metrics.log(2, "ppo", {SCORE: 0.5})
        metrics.log(3, "ppo", {SCORE: 0.75})
        away.rename(store)

    track(tmp_path / "out", recipe, work)
    client = MlflowClient(tracking_uri=str(store))
    known = json.loads((tmp_path / "out" / "tracking.json").read_text())["mlflow"]["run_id"]
    history = client.get_metric_history(known, f"ppo/{SCORE}")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert client.get_run(known).info.status == "FINISHED"
    said = capsys.readouterr().err
    assert said.count("mlflow takes no metrics, which wait: ") == 1
    assert said.count("mlflow takes metrics again, and has those that waited") == 1
    assert "did not take" not in said


def test_numbers_that_a_tracker_never_took_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = a_recipe({"mlflow": {"tracking_uri": "store"}})

    def work(metrics: MetricsWriter, trackers: Trackers) -> None:
        metrics.log(1, "ppo", {SCORE: 0.25})
        (tmp_path / "store").rename(tmp_path / "away")
        metrics.log(2, "ppo", {SCORE: 0.5})
        metrics.log(3, "ppo", {SCORE: 0.75})

    track(tmp_path / "out", recipe, work)  # the run itself succeeds
    assert len(read_metrics(tmp_path / "out" / "metrics.jsonl")) == 3
    said = capsys.readouterr().err
    assert "mlflow did not take 2 lines of metrics; metrics.jsonl has them" in said
    assert "mlflow does not know how the run ended (succeeded): " in said
    # The run in MLflow is gone, and no other takes its place without a word.
    with pytest.raises(InputError, match="MLflow, with its run"):
        track(tmp_path / "out", recipe, second_half, resume=True)


def test_a_run_may_go_on_with_other_trackers(tmp_path: Path) -> None:
    with pytest.raises(RunStopped):
        track(tmp_path / "out", a_recipe({"mlflow": {"tracking_uri": "store"}}), first_half)
    track(tmp_path / "out", a_recipe({}), second_half, resume=True)
    elsewhere = a_recipe({"mlflow": {"tracking_uri": "store", "experiment": "other"}})
    track(tmp_path / "out", elsewhere, second_half, resume=True)
    client = MlflowClient(tracking_uri=str(tmp_path / "store"))
    states = {}
    for name in ("rayward", "other"):
        (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        states[name] = run.info.status
    assert states == {"rayward": "KILLED", "other": "FINISHED"}


def test_a_run_that_fails_is_a_failed_run_in_mlflow(tmp_path: Path) -> None:
    sizes = {"held_out_adversarial": 21, "demonstrations": 40, "train_prompts": 21}
    recipe = a_recipe(
        {"mlflow": {"tracking_uri": "store"}},
        data={"tiny_world": sizes},
        model={"path": str(tmp_path)},
        stages=["sft"],
    )
    with pytest.raises(InputError, match=r"model\.path"):
        rayward.pipelines.runner.run_recipe.run_recipe(
            recipe, tmp_path / "out", resume=False, address=None
        )
    client = MlflowClient(tracking_uri=str(tmp_path / "store"))
    (run,) = client.search_runs([client.get_experiment_by_name("rayward").experiment_id])
    assert run.info.status == "FAILED"


def test_the_numbers_of_a_document_by_hand() -> None:
    document = {
        "stages": [
            {"name": "sft", "seconds": 2, "violation_rate": None, "interval": [0.1, 0.2]},
            {"name": "ppo", "seconds": 3.5, "judged": True},
        ],
        "timing": {"total": 6},
    }
    assert numbers_of(document, "summary") == {
        "summary/stages/sft/seconds": 2.0,
        "summary/stages/ppo/seconds": 3.5,
        "summary/timing/total": 6.0,
    }
