"""The commands of this room: serve, keys, submit, jobs, score."""

import typer

from services.keys_command import app as keys_app
from services.serve_command import serve_command

app = typer.Typer(no_args_is_help=True)
app.command("serve")(serve_command)
app.add_typer(keys_app, name="keys")
