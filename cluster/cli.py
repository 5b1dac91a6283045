"""The command `rayward`: gathers every room's commands, and turns bad input into one line."""

import json
import sys
from importlib.metadata import entry_points

import typer

from rayward.cluster.config.recipe import recipe_type
from rayward.cluster.errors import GateFailed, InputError, NodeLost, RunStopped

_EXIT_BAD_INPUT = 2
_EXIT_GATE_FAILED = 3
_EXIT_NODE_LOST = 4
_EXIT_STOPPED = 130  # as a shell says, and typer too, of a program that SIGINT ended

config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)


@config_app.callback()
def _config() -> None:
    """Look at the configuration."""


@config_app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of recipes, with which editors complete them."""
    print(json.dumps(recipe_type().model_json_schema(), indent=1))


def make_app() -> typer.Typer:
    """The whole command line. Rooms announce their apps in the group `rayward.commands`."""
    app = typer.Typer(
        help="Safety RLHF on a Ray cluster.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.add_typer(config_app, name="config")
    for room in sorted(entry_points(group="rayward.commands"), key=lambda room: room.name):
        app.add_typer(room.load())
    return app


def main() -> None:
    """Run the command line. Bad input: one line on stderr, exit code 2; a gate 3; a lost node 4."""
    try:
        make_app()()
    except InputError as error:
        # Ray wraps what a worker raised, with the worker's traceback; the person needs the line.
        original = getattr(error, "cause", error)
        print(f"rayward: {' '.join(str(original).split())}", file=sys.stderr)
        sys.exit(_EXIT_BAD_INPUT)
    except GateFailed as failed:
        print(f"rayward: {failed}", file=sys.stderr)
        sys.exit(_EXIT_GATE_FAILED)
    except NodeLost as lost:
        print(f"rayward: {lost}; --resume goes on", file=sys.stderr)
        sys.exit(_EXIT_NODE_LOST)
    except RunStopped as stopped:
        print(f"rayward: {stopped}; --resume goes on", file=sys.stderr)
        sys.exit(_EXIT_STOPPED)
