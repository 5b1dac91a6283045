"""The command line of this room: `rayward k8s ...`."""

import typer

app = typer.Typer(no_args_is_help=True)
k8s_app = typer.Typer(help="Size a run, and write the manifests that run it on Kubernetes.")
app.add_typer(k8s_app, name="k8s")


@k8s_app.callback()
def _k8s() -> None:
    """Size a run, and write the manifests that run it on Kubernetes."""
