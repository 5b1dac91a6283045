"""What a stage makes, named by a hash of everything that went in: the same name, the same thing.

A run looks for its stages' names in the runs beside it, and takes over what is there already. It
takes hard links where the file system has them: each run stands by itself, and nothing is stored
twice. What a stage made is never written to again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayward.cluster.atomic import new_directory

_DIGITS = 16


@dataclass(frozen=True)
class Artifact:
    """A stage's result, known by what goes in, before it is made."""

    stage: str
    inputs: Mapping[str, Any]
    """Settings, digests of data, and the names of the artifacts that it is made from; JSON."""

    @property
    def name(self) -> str:
        """The stage and the first 16 hexadecimal digits of the SHA-256 of its inputs."""
        canonical = json.dumps(self.inputs, sort_keys=True, ensure_ascii=True, allow_nan=False)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:_DIGITS]
        return f"{self.stage.replace('/', '-')}-{digest}"


def model_identity(path: str) -> dict[str, Any]:
    """What tells one model from another without reading its weights.

    A directory: the names, sizes and times of change (ns) of its files. A hub id: itself, whose
    newest revision may have moved.
    """
    directory = Path(path)
    if not directory.is_dir():
        return {"id": path}
    files = sorted(one for one in directory.rglob("*") if one.is_file())
    return {
        one.relative_to(directory).as_posix(): [one.stat().st_size, one.stat().st_mtime_ns]
        for one in files
    }


def finished_beside(run: Path, artifact: Artifact, code: str) -> Iterator[Path]:
    """The runs beside `run` that have finished this artifact, in order of their names.

    Args:
        run: the run directory.
        artifact: what is wanted.
        code: digest of the sources that must have made it.
    """
    for root in sorted(run.parent.iterdir()):
        document = root / "stages" / f"{artifact.stage}.json"
        # Not Path.is_file, which raises where a folder beside is closed to us.
        is_run = os.path.isfile(root / "manifest.json") and os.path.isfile(document)
        if root != run and is_run and _made_by(document) == (artifact.name, code):
            yield root


def link_tree(source: Path, target: Path) -> None:
    """Make `target`, which must not exist, hold what `source` holds, all of it or nothing."""
    with new_directory(target) as partial:
        shutil.copytree(source, partial, copy_function=_link, dirs_exist_ok=True)


def link_file(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    _link(str(source), str(target))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copy2(source, target)


def _made_by(document: Path) -> tuple[str | None, str | None]:
    content: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    return content.get("artifact"), content.get("code")
