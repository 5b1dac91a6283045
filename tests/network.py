"""Network policies as a cluster reads them: whether a connection between two ends passes."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pod:
    """An end of a connection: a pod, or an address outside."""

    namespace: str = "rayward"
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None

    @property
    def all_namespace_labels(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace, **self.namespace_labels}


def selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def is_peer(peer: dict[str, Any], other: Pod) -> bool:
    if "ipBlock" in peer:
        assert set(peer) == {"ipBlock"}
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        block = peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            address in ipaddress.ip_network(one) for one in block.get("except", [])
        )
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        here = selects(peer["namespaceSelector"], other.all_namespace_labels)
    else:
        here = other.namespace == "rayward"
    return here and selects(peer.get("podSelector", {}), other.labels)


def has_port(rule: dict[str, Any], number: int, protocol: str) -> bool:
    return any(
        one["protocol"] == protocol and one["port"] <= number <= one.get("endPort", one["port"])
        for one in rule["ports"]
    )


def passes(
    policies: list[dict[str, Any]], way: str, own: Pod, other: Pod, number: int, protocol: str
) -> bool:
    """Whether one end's policies let a connection through: any rule of any policy is enough."""
    if own.namespace != "rayward" or own.address is not None:
        return True
    mine = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], own.labels)
    ]
    assert mine, "a pod that no policy selects is open to everyone"
    key, peers = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[way]
    return any(
        any(is_peer(peer, other) for peer in rule[peers]) and has_port(rule, number, protocol)
        for spec in mine
        for rule in spec.get(key, [])
    )
