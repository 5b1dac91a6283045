"""`rayward keys`: make, list and revoke the keys of a service."""

from pathlib import Path
from typing import Annotated

import typer

from rayward.cluster.progress import announce
from rayward.services.http.keys import SCOPES, Key, create_key, read_keys, revoke_key

app = typer.Typer(help="Make, list and revoke the keys of a service.", no_args_is_help=True)

_File = Annotated[
    Path,
    typer.Option(
        "--file",
        envvar="RAYWARD_KEYS",
        help="The file of keys, which keys.path of the service's settings names.",
    ),
]
_DEFAULT_FILE = Path("keys.json")


@app.command("create")
def create_command(
    scope: Annotated[
        list[str],
        typer.Option("--scope", help=f"What the key may do: {', '.join(SCOPES)}. May be repeated."),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Whose key it is.")] = None,
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            "--requests-per-minute",
            help="What it may ask; default: keys.requests_per_minute of the service's settings.",
        ),
    ] = None,
    file: _File = _DEFAULT_FILE,
) -> None:
    """Make a key and print it, this once; only its hash is kept."""
    key, token = create_key(file, scope, name, requests_per_minute)
    announce(f"key {key.id} may {', '.join(key.scopes)}; it is in {file}, without its secret")
    print(token)


@app.command("list")
def list_command(file: _File = _DEFAULT_FILE) -> None:
    """Show the keys of a file: id, state, scopes, rate, name."""
    for key in read_keys(file):
        print(_line(key))


@app.command("revoke")
def revoke_command(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `rayward keys list` shows it.")],
    file: _File = _DEFAULT_FILE,
) -> None:
    """Revoke a key for good; a running service refuses it from the next request on."""
    key = revoke_key(file, key_id)
    announce(f"key {key.id} was revoked at {key.revoked}")


def _line(key: Key) -> str:
    state = f"made {key.created:%Y-%m-%d}"
    if key.revoked is not None:
        state = f"revoked {key.revoked:%Y-%m-%d}"
    rate = "" if key.requests_per_minute is None else f"{key.requests_per_minute}/min"
    return "\t".join((key.id, state, ",".join(key.scopes), rate, key.name or ""))
