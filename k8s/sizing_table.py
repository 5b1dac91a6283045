"""Sizes for people, as tables, and for programs, as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from rayward.k8s.sizing import GIB, RoleSize, Size

_PLAIN_WIDTH = 184
# Columns, and the parts of memory that each adds up.
_COLUMNS = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations",),
    "kv cache": ("kv_cache",),
    "logits": ("logits",),
    "ZeRO": ("gathered", "buckets"),
    "stepping": ("stepping",),
    "context": ("context",),
    "loading": ("loading",),
}


def to_document(size: Size) -> dict[str, Any]:
    """A size as JSON; memory in bytes."""
    return {
        "model": size.shape.name,
        "parameters": size.shape.parameters,
        "shape": asdict(size.shape),
        "roles": [
            {**asdict(one), "memory": {**asdict(one.memory), "total": one.memory.total}}
            for one in size.roles
        ],
        "gpus": size.gpus,
        "nodes": dict(size.nodes),
        "gpu_memory": size.gpu_memory,
        "least_gpu_memory": size.least_gpu_memory,
        "step": None
        if size.step is None
        else {
            **asdict(size.step),
            "shares": size.step.shares,
            "bottleneck": size.step.bottleneck,
        },
    }


def write_tables(sizes: Sequence[Size]) -> None:
    """One table for each size, and below it what it comes to."""
    console = Console()
    # Nothing is cut off for whoever reads it by a program.
    console = console if console.is_terminal else Console(width=_PLAIN_WIDTH)
    for size in sizes:
        console.print(_table(size), highlight=False)
        console.print(_below(size), markup=False, highlight=False, soft_wrap=True)


def _table(size: Size) -> Table:
    title = f"{size.shape.name}: {size.shape.parameters:,} parameters; GiB per GPU (process)"
    table = Table(title=title, title_justify="left")
    table.add_column("role")
    for column in ("processes", *_COLUMNS, "in all"):
        table.add_column(column, justify="right")
    table.add_column("fits")
    table.add_column("group")
    for one in size.roles:
        parts = [
            _gib(sum(getattr(one.memory, part) for part in parts)) for parts in _COLUMNS.values()
        ]
        table.add_row(
            one.role, _processes(one), *parts, _gib(one.memory.total), _fits(one), one.group
        )
    return table


def _below(size: Size) -> str:
    nodes = ", ".join(f"{count} {group}" for group, count in size.nodes.items())
    # Without PPO, or on CPUs, there is nothing to count.
    lines = [f"PPO: {size.gpus:g} GPUs; nodes: {nodes}" if size.gpus else f"nodes: {nodes}"]
    for one in size.roles:
        if one.sequences is not None:
            lines.append(f"an engine draws {one.sequences} answers at a time")
    if size.step is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in size.step.shares.items())
        lines.append(f"a step's time: {shares}; bottleneck: {size.step.bottleneck}")
    elif size.least_gpu_memory > size.gpu_memory:
        least, there = _gib(size.least_gpu_memory), _gib(size.gpu_memory)
        lines.append(f"does not fit: the largest role needs GPUs of {least} GiB, not {there}")
    return "\n".join(lines) + "\n"


def _processes(one: RoleSize) -> str:
    return f"{one.processes} x {one.gpus:g} GPU" if one.gpus else str(one.processes)


def _fits(one: RoleSize) -> str:
    return "" if one.fits is None else "yes" if one.fits else "NO"


def _gib(amount: float) -> str:
    if not amount:
        return ""
    return f"{amount / GIB:.1f}" if amount >= 0.05 * GIB else "<0.1"
