"""The very texts of the manifests at work: the RayJob's entrypoint, the RayService's Serve config.

They run on two Ray nodes as in the cluster, a head without CPUs and a worker of the group `cpu`, in
a folder that stands for /rayward. The recipe is made small by the topology, a file there too.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayward.cluster.config.overlays import merged
from tests.ray_nodes import RayNodes, why_no_namespaces

pytestmark = pytest.mark.slow

K8S = Path(__file__).parents[2] / "k8s"
SMALL: dict[str, Any] = {
    "data": {
        "tiny_world": {
            "demonstrations": 200,
            "safety_demonstrations": 42,
            "train_prompts": 84,
            "safety_pairs": 100,
            "helpfulness_pairs": 100,
            "held_out_adversarial": 21,
            "held_out_benign": 4,
            "held_out_borderline": 2,
            "held_out_pairs": 20,
        }
    },
    "model": {"make": {"hidden_size": 64, "heads": 2, "layers": 2, "vocab_size": 1024}},
    "stages": ["reward_safety", "reward_helpfulness", "context_distillation"],
    "reward_safety": {"max_steps": 10},
    "reward_helpfulness": {"max_steps": 10},
    "context_distillation": {"prompts": 21, "fit": {"max_steps": 4}},
}
# What `serve status` does; the command itself takes what others need to start.
WAIT = """
import sys, time
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
client, until = ServeSubmissionClient(sys.argv[1]), time.monotonic() + 240
while client.get_serve_details()["applications"]["rayward"]["status"] == "DEPLOYING":
    assert time.monotonic() < until
    time.sleep(0.5)
"""
ASK = """
import json, sys
import httpx
url, key = sys.argv[1:3]
with httpx.Client(base_url=url, headers={"Authorization": "Bearer " + key}, timeout=120) as client:
    answers = {
        "score": client.post("/v1/score", json=json.loads(sys.argv[3])),
        "chat": client.post("/v1/chat/completions", json=json.loads(sys.argv[4])),
        "jobs": client.get("/v1/jobs"),
        "stranger": client.get("/v1/models", headers={"Authorization": "Bearer x"}),
    }
print(json.dumps({name: [one.status_code, one.json()] for name, one in answers.items()}))
"""


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((K8S / "base" / name).read_text())
    return found


def serve_environment(group: dict[str, Any], folder: Path) -> dict[str, str]:
    """Serve's variables of a group's pods. These share a /tmp, where pods have one each.

    Args:
        group: of a manifest.
        folder: of its own; a short path, because a socket's is.
    """
    folder.mkdir()
    (container,) = group["template"]["spec"]["containers"]
    own = {one["name"]: one["value"] for one in container["env"] if "SERVE" in one["name"]}
    assert own["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": ".",
        "SERVER_STATE_FILE": "server-state",
    }
    return own | {f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, preloading: None) -> Iterator[RayNodes]:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(f"nodes need network namespaces: {reason}")
    folder = tmp_path_factory.mktemp("rayward")
    topology = yaml.safe_load((K8S / "overlays/dev-cpu/topology.yaml").read_text())
    (folder / "topology").mkdir()
    (folder / "topology/topology.yaml").write_text(yaml.safe_dump(merged(topology, SMALL)))
    with tempfile.TemporaryDirectory(prefix="rw") as short, RayNodes(folder) as nodes:
        for group in ("headGroupSpec", "workerGroupSpecs"):
            spec = document("rayjob.yaml")["spec"]["rayClusterSpec"][group]
            group_spec = spec[0] if isinstance(spec, list) else spec
            cpus = int(group_spec["rayStartParams"]["num-cpus"])
            nodes.start(
                cpus, group_spec["labels"], serve_environment(group_spec, Path(short, group[:4]))
            )
        yield nodes


@pytest.fixture(scope="module")
def trained(nodes: RayNodes) -> RayNodes:
    """After the RayJob's entrypoint, as KubeRay's submitter hands it to Ray."""
    entrypoint = document("rayjob.yaml")["spec"]["entrypoint"]
    dashboard = f"http://{nodes.nodes[0].address}:8265"
    done = nodes.run("ray", "job", "submit", "--address", dashboard, "--", *entrypoint.split())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return nodes


def test_the_entrypoint_makes_the_run(trained: RayNodes) -> None:
    run = trained.folder / "runs/demo"
    assert json.loads((run / "status.json").read_text())["state"] == "succeeded"
    made = {path.name for path in (run / "models").iterdir()}
    assert made == {"start", *SMALL["stages"]}
    # Again, as after a retry on a new cluster: there is nothing left to do.
    began = time.monotonic()
    entrypoint = document("rayjob.yaml")["spec"]["entrypoint"]
    again = trained.run(*entrypoint.split())
    assert again.returncode == 0, again.stderr[-2000:]
    assert time.monotonic() - began < 60


def test_the_serve_config_answers_a_scored_request(trained: RayNodes) -> None:
    folder = trained.folder
    created = trained.run(
        "rayward", "keys", "create", "--scope", "admin", "--file", "keys/keys.json"
    )
    assert created.returncode == 0, created.stderr
    text = document("rayservice.yaml")["spec"]["serveConfigV2"]
    (folder / "serve.yaml").write_text(text)
    head = trained.nodes[0].address
    put = trained.run("serve", "deploy", "serve.yaml", "--address", f"http://{head}:8265")
    assert put.returncode == 0, put.stderr[-2000:]
    waited = trained.run("python", "-c", WAIT, f"http://{head}:8265")
    assert waited.returncode == 0, waited.stderr[-2000:]
    said = trained.run("serve", "status", "--address", f"http://{head}:8265").stdout
    assert yaml.safe_load(said)["applications"]["rayward"]["status"] == "RUNNING", said
    item = {"messages": [{"role": "user", "content": "tell me ."}], "response": "no ."}
    chat = {"model": "policy", "messages": item["messages"], "max_tokens": 8}
    # To the worker's own address, as the Service does.
    url = f"http://{trained.nodes[1].address}:8000"
    asked = trained.run(
        "python",
        "-c",
        ASK,
        url,
        created.stdout.strip(),
        json.dumps({"items": [item]}),
        json.dumps(chat),
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    answers = json.loads(asked.stdout)
    assert {name: status for name, (status, _) in answers.items()} == {
        "score": 200,
        "chat": 200,
        "jobs": 200,
        "stranger": 401,
    }
    (result,) = answers["score"][1]["results"]
    assert set(result["scores"]) == {"safety", "helpfulness"}
    assert 0 < result["scores"]["safety"]["probability"] < 1
    assert [job["id"] for job in answers["jobs"][1]["jobs"]] == ["demo"]
