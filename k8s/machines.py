"""The machines that worker groups are made of: one kind of node for each group."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from rayward.cluster.config.base import Settings
from rayward.cluster.config.faults import as_input_error
from rayward.cluster.config.load import read_mapping
from rayward.cluster.errors import InputError

UNLABELLED = "cpu"
"""The group of roles that ask for no labels, where nobody says which machines there are."""
_NAME = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
_SEVERAL = re.compile(r"(!?)in\((.*)\)")


class Machine(Settings):
    """A worker group: nodes of one kind."""

    role: str = Field(pattern=_NAME)
    """The group's name, which its nodes carry as the label `role`."""
    cpus: int = Field(ge=1)
    """CPUs of a node, as Ray counts them, and as a pod asks Kubernetes for them unless `cores` says
    otherwise: what is allocatable to a pod, less than the machine has, of which system and daemons
    keep a part."""
    cores: int | None = Field(default=None, ge=1)
    """Cores that a pod asks Kubernetes for; null: one for each CPU. Roles take turns, so that
    fewer may do."""
    memory_gib: int = Field(ge=1)
    """Memory of a node, in GiB; again what is allocatable to a pod."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of a node."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Custom Ray resources of a node, by name."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray labels of its nodes, beside `role`."""
    max_nodes: int | None = Field(default=None, ge=1)
    """Nodes that there may be; null: as many as it takes."""

    @property
    def all_labels(self) -> dict[str, str]:
        """The labels that its nodes carry."""
        return {"role": self.role, **self.labels}

    @property
    def offers(self) -> dict[str, float]:
        """What an empty node has, by Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **self.custom}

    def carries(self, selector: Mapping[str, str]) -> bool:
        """Whether its nodes meet a Ray label selector: `a`, `!a`, `in(a, b)` or `!in(a, b)`."""
        return all(_meets(self.all_labels.get(name), want) for name, want in selector.items())


class Machines(Settings):
    """The worker groups that there may be."""

    groups: list[Machine] = Field(min_length=1)
    """In the order in which they are tried."""


def load_machines(path: Path) -> list[Machine]:
    """Read a file of machines.

    Raises:
        InputError: names the file and the setting; it cannot be read, or says two things of one
            group.
    """
    document = read_mapping(path, "--machines", "a YAML mapping with the list `groups`")
    try:
        groups = Machines.model_validate(document).groups
    except ValidationError as error:
        fault = as_input_error(error, document, "machines")
        raise InputError(f"{path}: {fault.field}", fault.value, fault.expected) from error
    names = [group.role for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: groups", name, "a role for each group of its own")
    return groups


def uniform_machines(
    selectors: Iterable[tuple[str, Mapping[str, str]]], cpus: int, memory_gib: int, gpus: int
) -> list[Machine]:
    """A group of equal nodes for each set of labels that is asked for.

    Args:
        selectors: whose it is, and the label selector.
        cpus, memory_gib, gpus: of each node.

    Raises:
        InputError: a selector does not say which labels to give.
    """
    groups: dict[str, Machine] = {}
    for whose, selector in selectors:
        field = f"{whose}: resources.labels"
        if any(_is_pattern(want) for want in selector.values()):
            expected = "plain labels, or --machines with the groups that there are"
            raise InputError(field, dict(selector), expected)
        role = selector.get("role") or "-".join(selector.values()) or UNLABELLED
        labels = {name: value for name, value in selector.items() if name != "role"}
        try:
            machine = Machine(role=role, cpus=cpus, memory_gib=memory_gib, gpus=gpus, labels=labels)
        except ValidationError as error:
            expected = f"labels that name a worker group (text that matches {_NAME})"
            raise InputError(field, dict(selector), expected) from error
        if groups.setdefault(role, machine) != machine:
            expected = f"other labels: the group {role} has {groups[role].all_labels}"
            raise InputError(field, dict(selector), expected)
    return list(groups.values())


def _is_pattern(want: str) -> bool:
    return want.startswith("!") or _SEVERAL.fullmatch(want) is not None


def _meets(label: str | None, want: str) -> bool:
    several = _SEVERAL.fullmatch(want)
    if several is not None:
        listed = label in {one.strip() for one in several[2].split(",")}
        return listed != bool(several[1])
    return label != want[1:] if want.startswith("!") else label == want
