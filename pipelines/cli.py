"""The commands of this room: demo, run, evaluate, runs, import, doctor."""

import json
import logging
import sys
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from rayward.cluster.config.load import load_recipe, make_recipe
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.shipped import find_recipe, shipped_recipes
from rayward.cluster.errors import InputError, RunStopped
from rayward.cluster.options import Overlays, Overrides
from rayward.cluster.runs.run_directory import has_run
from rayward.pipelines.data.import_data import import_command
from rayward.pipelines.doctor.doctor import doctor_command
from rayward.pipelines.runner.runs_command import app as runs_app

app = typer.Typer(no_args_is_help=True)
app.command("import")(import_command)
app.command("doctor")(doctor_command)
app.add_typer(runs_app, name="runs")

Out = Annotated[
    Path | None, typer.Option("--out", help="The run directory; default: a new one under runs/.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help="Of a running Ray cluster; default: an embedded Ray.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]


@app.command()
def demo(
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Every random draw comes from this.", min=0)] = 0,
    address: Address = None,
) -> None:
    """Make a small language model safer, from scratch, and show what happened."""
    recipe = load_recipe(shipped_recipes()["demo"], [f"seed={seed}"])
    _run(recipe, out, resume=False, address=address)


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe: a YAML file, see `rayward config schema`, or the name of one that "
            "comes with Rayward."
        ),
    ],
    out: Out = None,
    overlays: Overlays = None,
    overrides: Overrides = None,
    resume: Resume = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Go on with the run in --out if there is one, else begin it: for whoever "
            "starts this again when it has failed.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """Run a recipe."""
    if auto_resume and (resume or out is None):
        expected = "--out with it, and no --resume: it goes on with the run there, or begins it"
        raise InputError("--auto-resume", auto_resume, expected)
    resolved = load_recipe(find_recipe(recipe), overrides, overlays)
    _run(resolved, out, resume, address, auto_resume)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model directory or hub id.")],
    data: Annotated[str, typer.Option(help="A data directory, as `rayward import` writes it.")],
    out: Out = None,
    overlays: Overlays = None,
    overrides: Overrides = None,
    resume: Resume = False,
    address: Address = None,
) -> None:
    """Measure a model: violations, false refusals, TruthfulQA, ToxiGen, as far as the data goes."""
    document: dict[str, Any] = {
        "name": "evaluate",
        "data": {"path": data},
        "model": {"path": model},
        "stages": ["evaluation"],
    }
    _run(make_recipe(document, overrides, overlays), out, resume, address)


def _run(
    recipe: Recipe,
    out: Path | None,
    resume: bool,
    address: str | None,
    auto_resume: bool = False,
) -> None:
    if resume and out is None:
        raise InputError("--out", None, "the directory of the run that --resume goes on with")
    # Ray is imported with it, and `rayward doctor` must start where Ray is broken.
    from rayward.cluster.ray_runtime.session import check_address

    check_address(address)
    if auto_resume and out is not None:
        resume = has_run(out)
    # torch and vLLM take seconds to import; bad input should not have to wait for them.
    # As they are imported, vLLM and DeepSpeed log what they find of the machine, DeepSpeed to
    # standard output, which is the summary's.
    logging.disable(logging.WARNING)
    with redirect_stdout(sys.stderr):
        from rayward.pipelines.runner.run_recipe import run_recipe
    logging.disable(logging.NOTSET)

    name = f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        summary = run_recipe(recipe, (out or Path("runs") / name).absolute(), resume, address)
    except KeyboardInterrupt as interrupt:
        # typer would end the program without a word.
        raise RunStopped("interrupted") from interrupt
    print(json.dumps(summary, indent=1))
