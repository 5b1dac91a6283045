"""The dashboard and the monitors: they ask for numbers that there are."""

import json
import re
from pathlib import Path

from tests.manifests import (
    K8S,
    OPTIONAL,
    RAY_KINDS,
    ROOT,
    build,
    cluster_of,
    of_kind,
    one,
)


def test_the_dashboard_shows_numbers_that_there_are() -> None:
    dashboard = json.loads((K8S / "dashboards" / "rayward.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    shown = {
        name.removesuffix("_bucket")
        for expression in expressions
        for name in re.findall(r"\b((?:ray|autoscaler)_[a-z_]+)(?=[\{\[])", expression)
    }
    assert len(shown) > 40
    source = "".join(
        path.read_text()
        for room in ("actors", "cluster", "pipelines")
        for path in (ROOT / room).rglob("*.py")
    )
    of_runs = {
        "ray_rayward_" + re.sub(r"\W", "_", name)
        for name in re.findall(r'"([a-z_]+(?:/[a-z_]+)+)"', source)
    }
    of_services = {
        f"ray_{name}"
        for name in re.findall(
            r'"(rayward_[a-z_]+)"', (ROOT / "services" / "http" / "prometheus.py").read_text()
        )
    }
    import ray.dashboard.modules.metrics.dashboards as shipped

    of_ray = "".join(path.read_text() for path in Path(shipped.__file__).parent.glob("*.py"))
    for name in sorted(shown):
        if name.startswith("ray_rayward_"):
            assert name in of_runs | of_services, name
        else:
            assert re.search(rf"\b{name}\b", of_ray), name
    assert of_services <= shown


def test_the_dashboard_is_laid_out() -> None:
    dashboard = json.loads((K8S / "dashboards" / "rayward.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(dashboard))) - {"__rate_interval"}
    assert used == variables


def test_what_prometheus_reads_is_a_port_of_the_pods() -> None:
    documents = build("dev-cpu", OPTIONAL)
    guide = (K8S / "README.md").read_text()
    (release,) = re.findall(r"helm install (\S+) prometheus-community/kube-prometheus-stack", guide)
    assert len(of_kind(documents, "PodMonitor")) == 2
    for monitor in of_kind(documents, "PodMonitor"):
        # The chart's Prometheus reads what carries the name of its release, and nothing else.
        assert monitor["metadata"]["labels"]["release"] == release
        node_type = monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"]
        asked = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        for kind in RAY_KINDS:
            cluster = cluster_of(one(documents, kind))
            groups = (
                [cluster["headGroupSpec"]] if node_type == "head" else cluster["workerGroupSpecs"]
            )
            for group in groups:
                ports = group["template"]["spec"]["containers"][0]["ports"]
                assert asked <= {port["name"] for port in ports}
