"""A run over three machines, every role in its place; one is lost, and the run goes on."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ray_nodes import RayNodes, why_no_namespaces
from tests.serving import write_models

# `RAYWARD_TEST_LONG=1` for the demo itself, which takes a quarter of an hour.
IS_LONG = os.environ.get("RAYWARD_TEST_LONG") == "1"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400 if IS_LONG else 600)]
PLACES = ("head", "learner", "rollout")
RECIPE: dict[str, Any] = {
    "name": "nodes",
    "data": {
        "tiny_world": {
            "demonstrations": 200,
            "train_prompts": 84,
            "safety_pairs": 4,
            "helpfulness_pairs": 4,
            "held_out_adversarial": 21,
            "held_out_benign": 2,
            "held_out_borderline": 2,
            "held_out_pairs": 2,
            "validation_adversarial": 0,
            "validation_benign": 0,
        }
    },
    "model": {"make": {"hidden_size": 64, "heads": 2, "layers": 2, "vocab_size": 1024}},
    "stages": ["ppo"],
    "ppo": {
        "safety": {"path": "models/safety"},
        "helpfulness": {"path": "models/helpfulness"},
        "steps": 30,
        "batch_size": 16,
        "minibatch_size": 16,
        "sampling": {"max_prompt_tokens": 300, "max_response_tokens": 8},
        "checkpoint": {"every": 2},
        "early_stop": None,
    },
}


def on(place: str, cpus: float) -> dict[str, Any]:
    return {"resources": {"cpus": cpus, "labels": {"role": place}}}


THREE = {
    "ppo": {
        "policy": on("learner", 1),
        "critic": on("learner", 1),
        "reference": on("head", 0.5),
        "safety": on("head", 0.5),
        "helpfulness": on("head", 0.5),
        "rollout": on("rollout", 1),
    },
}
TWO = {"ppo": {"rollout": on("head", 0.5)}}
ROLES = {
    "Learner": "learner",
    "Reference": "head",
    "RewardModel": "head",
    "RolloutWorker": "rollout",
}


@pytest.fixture
def nodes(tmp_path: Path, preloading: None) -> Iterator[RayNodes]:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(f"nodes need network namespaces: {reason}")
    with RayNodes(tmp_path / "nodes") as nodes:
        for place in PLACES:
            nodes.start(2, {"role": place})
        yield nodes


def until_step(run: Path, step: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + (1200 if IS_LONG else 300)
    row = f'"stage": "ppo", "step": {step},'
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and row in metrics.read_text()):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def places(nodes: RayNodes) -> dict[str, set[str]]:
    """Addresses at which actors of each class live."""

    def listed(kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            nodes.run("ray", "list", kind, "--format=json", "--detail", "--limit=1000").stdout
        )
        return found

    address = {node["node_id"]: node["node_ip"] for node in listed("nodes")}
    found: dict[str, set[str]] = {}
    for actor in listed("actors"):
        if actor["state"] == "ALIVE":
            found.setdefault(actor["class_name"], set()).add(address[actor["node_id"]])
    return found


def test_a_lost_machine_is_named_and_the_run_goes_on_without_it(nodes: RayNodes) -> None:
    folder = nodes.folder
    write_models(folder / "models")
    for name, part in (("recipe", RECIPE), ("three", THREE), ("two", TWO)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(part))
    recipe = "demo" if IS_LONG else "recipe.yaml"
    command = ["rayward", "run", recipe, "--overlay", "three.yaml", "--out", "run"]
    command += ["--address", nodes.address]
    run, log = folder / "run", folder / "run.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            nodes.command(*command),
            cwd=folder,
            env=nodes.environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            until_step(run, 3, process, log)
            where = dict(zip(PLACES, (node.address for node in nodes.nodes), strict=True))
            found = places(nodes)
            assert {name: found[name] for name in ROLES} == {
                name: {where[place]} for name, place in ROLES.items()
            }
            nodes.nodes[2].kill()
            assert process.wait(90) == 4
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait(10)
    line = log.read_text().strip().splitlines()[-1]
    lost = f"the cluster lost node {where['rollout']} (role=rollout)"
    assert line.startswith(f"rayward: {lost}, and with it what ran there (")
    assert line.endswith("; --resume goes on")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"].startswith(f"NodeLost: {lost}")
    # On the two that are left.
    done = nodes.run(*command, "--overlay", "two.yaml", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ppo: resumed after step " in done.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "succeeded"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["stage"] == "ppo"]
    # The demo may stop early.
    last = max(steps) if IS_LONG else RECIPE["ppo"]["steps"]
    assert sorted(set(steps)) == [*range(1, last + 1)]
