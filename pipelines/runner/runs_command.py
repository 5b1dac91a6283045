"""`rayward runs`: the runs of a folder, where a model comes from, how two runs differ."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.topology import flat_settings
from rayward.cluster.errors import InputError
from rayward.cluster.records.plan import PREVIOUS, START, evaluation_of, make_plan
from rayward.cluster.records.rates import Rate, StageEvaluation
from rayward.cluster.records.samples import read_samples
from rayward.cluster.records.summary import finished_stages, stage_evaluations
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.pipelines.evaluation.gates import (
    change,
    is_adversarial,
    is_benign,
    is_helpful,
    is_violation,
    pair_up,
)

app = typer.Typer(help="Look at runs.", no_args_is_help=True)

_WIDTH = 240  # columns of output that is not a terminal's

Run = Annotated[Path, typer.Argument(help="A run directory.")]


@app.command("list")
def list_command(
    root: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
) -> None:
    """All runs of a folder, the newest last."""
    if not root.is_dir():
        raise InputError("root", str(root), "a folder with runs in it")
    table = Table("run", "recipe", "seed", "state", "stage", "created", "policy", "violations")
    found = sorted(_runs(root), key=lambda run: str(run.manifest()["created"]))
    for run in found:
        manifest, status = run.manifest(), run.status()
        try:
            last = list(stage_evaluations(run).items())[-1:]
            policy, violations = (last[0][0], _share(last[0][1].violations)) if last else ("", "")
        except (InputError, ValidationError):
            # Another version's run must not hide the others.
            policy, violations = "unreadable", "of another version"
        table.add_row(
            run.root.name,
            manifest["run"],
            str(manifest["seed"]),
            status.state,
            status.stage or "",
            manifest["created"],
            policy,
            violations,
        )
    _print(table if found else f"no runs in {root}")


@app.command("show")
def show_command(
    run: Run,
    stage: Annotated[
        str | None, typer.Option(help="Whose lineage is shown; default: the last model's.")
    ] = None,
) -> None:
    """A run's stages, its numbers, and where its model comes from."""
    shown = _open(run)
    manifest, status = shown.manifest(), shown.status()
    error = f": {status.error}" if status.error else ""
    _print(f"{manifest['run']}, seed {manifest['seed']}, {status.state}{error}")
    _print(_stage_table(shown))
    models = list(manifest["lineage"])
    if not models:
        return
    if stage is not None and stage not in models:
        raise InputError("--stage", stage, f"a stage that made a model: {', '.join(models)}")
    _print(_lineage(shown, stage or models[-1]))


@app.command("compare")
def compare_command(a: Run, b: Run) -> None:
    """What two runs differ in: settings, stages, and the measured rates."""
    first, second = _open(a), _open(b)
    settings = Table("setting", a.name, b.name, title="settings that differ")
    one, two = flat_settings(first.recipe()), flat_settings(second.recipe())
    for name in sorted({*one, *two}):
        if one.get(name) != two.get(name):
            settings.add_row(name, _json(one.get(name)), _json(two.get(name)))
    _print(settings if settings.row_count else "the settings are the same")
    stages = Table("stage", a.name, b.name, title="stages")
    for name in dict.fromkeys([*_stage_names(first), *_stage_names(second)]):
        names = [_artifact(run, name) for run in (first, second)]
        same = "the same" if names[0] == names[1] and names[0] != "" else names[1]
        stages.add_row(name, names[0], same)
    _print(stages)
    _print(_rates_compared(first, second, a.name, b.name))


def _runs(root: Path) -> Iterator[RunDirectory]:
    for directory in sorted(root.iterdir()):
        if _is_run(directory):
            yield RunDirectory(directory)


def _is_run(directory: Path) -> bool:
    names = ("manifest.json", "status.json", "recipe.yaml")
    return all((directory / name).is_file() for name in names)


def _open(directory: Path) -> RunDirectory:
    if not _is_run(directory):
        raise InputError("run", str(directory), "the directory of a run")
    return RunDirectory(directory)


def _stage_table(run: RunDirectory) -> Table:
    table = Table("stage", "artifact", "seconds", "violations", "helpful", "false refusals")
    evaluations, finished = stage_evaluations(run), finished_stages(run)
    for stage in dict.fromkeys([*(p for p in evaluations if p not in finished), *finished]):
        result = finished.get(stage)
        found = evaluations.get(stage)
        seconds = "" if result is None else f"{result['seconds']:.0f}"
        if result is not None and "taken_from" in result:
            seconds = f"from {Path(result['taken_from']).name}"
        table.add_row(stage, _artifact(run, stage), seconds, *_rates(found))
    return table


def _rates(found: StageEvaluation | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    return _share(found.violations), _share(found.helpful), _share(found.false_refusals)


def _share(rate: Rate | None) -> str:
    if rate is None or rate.rate is None:
        return "not judged" if rate is None else "no prompts"
    return f"{rate.rate:.1%} ({rate.count}/{rate.total})"


def _artifact(run: RunDirectory, stage: str) -> str:
    document = run.stage_document(stage)
    return "" if document is None else str(document.get("artifact") or "")


def _stage_names(run: RunDirectory) -> list[str]:
    measured = [evaluation_of(policy) for policy in stage_evaluations(run)]
    return [*finished_stages(run), *measured]


def _lineage(run: RunDirectory, stage: str) -> Tree:
    """From a model back to data, seed and code."""
    manifest, recipe = run.manifest(), run.recipe()
    tree = Tree(f"lineage of {stage}")
    _grow(tree, run, manifest, recipe, stage, set())
    made = tree.add("made with")
    made.add(f"seed {manifest['seed']}")
    for name, value in {**manifest["code"], **manifest["packages"]}.items():
        made.add(f"{name} {value}")
    return tree


def _grow(
    tree: Tree,
    run: RunDirectory,
    manifest: dict[str, Any],
    recipe: Recipe,
    stage: str,
    shown: set[str],
) -> None:
    """Add a stage and, where it is not `shown` yet, everything that it came from."""
    known = manifest["lineage"]
    if stage in shown:
        tree.add(f"{stage}: as above")
        return
    shown.add(stage)
    entry = known.get(stage)
    label = stage if entry is None else f"{stage}: {entry['model']} {entry['digest']}"
    branch = tree.add(label)
    document = run.stage_document(stage)
    if document is not None and document.get("inputs") is not None:
        for table, digest in document["inputs"].get("data", {}).items():
            branch.add(f"data{table} {digest}")
    planned = {one.id: one for one in make_plan(recipe)}.get(stage)
    gathered = () if planned is None else planned.gathered
    for name in gathered:
        branch.add(f"gathered by {name}: {_artifact(run, name)}")
    if entry is None:
        return
    for role, parent in entry["parents"].items():
        own = _stage_of(run, parent)
        if own in known:
            _grow(branch.add(role), run, manifest, recipe, own, shown)
        else:
            branch.add(f"{role}: {own}")


def _stage_of(run: RunDirectory, path: str) -> str:
    """The stage whose model lies at a path, or the path itself."""
    for stage in (START, PREVIOUS, *run.manifest()["lineage"]):
        if Path(path).parts[-2:] == ("models", stage):
            return stage
    return path


def _rates_compared(first: RunDirectory, second: RunDirectory, a: str, b: str) -> Table:
    table = Table("policy", "rate", a, b, "change, 95 % paired", title="measured")
    one, two = stage_evaluations(first), stage_evaluations(second)
    for policy in one:
        if policy not in two:
            continue
        pairs = pair_up(
            read_samples(first.samples_path(policy)), read_samples(second.samples_path(policy))
        )
        changes = {
            "violations": change(pairs, is_adversarial, is_violation),
            "helpful": change(pairs, is_benign, is_helpful),
        }
        for name, found in changes.items():
            before, after = getattr(one[policy], name), getattr(two[policy], name)
            told = "" if found is None or before is None or after is None else _interval(found)
            table.add_row(policy, name, _share(before), _share(after), told)
    return table


def _interval(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"


def _json(value: object) -> str:
    return "" if value is None else json.dumps(value)


def _print(what: object) -> None:
    console = Console()
    if not console.is_terminal:
        # Nothing is cut off for whoever reads it by a program.
        console = Console(width=_WIDTH)
    console.print(what, markup=False, highlight=False)
