"""The commands of this room: serve, keys, submit, jobs, score."""

import typer

from rayward.services.client.commands import jobs_app, score_command, submit_command
from rayward.services.client.keys_command import app as keys_app
from rayward.services.gateway.serve_command import serve_command

app = typer.Typer(no_args_is_help=True)
app.command("serve")(serve_command)
app.command("submit")(submit_command)
app.command("score")(score_command)
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")
