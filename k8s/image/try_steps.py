"""Carries out the Dockerfile's steps without Docker, as far as can be: `try_steps.py FOLDER`.

FOLDER, a new one, stands for the image's /: the stages' COPY, ENV, WORKDIR and RUN happen below
it. Steps that change the machine itself (Debian's packages, users) are listed and left out.
`--list` lists all and does nothing.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = Path(__file__).with_name("Dockerfile")
OF_THE_MACHINE = ("apt-get", "groupadd", "useradd")
# Everything that the image has under its root and that the steps name.
_PLACES = re.compile(r"(?<![\w.$/-])/(?=opt/|src|rayward|home/|tmp/)")


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions in order: word and arguments, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, arguments = line.partition(" ")
            yield word, arguments.strip()


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; first of each, FROM."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, arguments in instructions():
        if word == "FROM":
            found[arguments.rpartition(" AS ")[2]] = []
        if found:
            found[next(reversed(found))].append((word, arguments))
    return found


def steps(target: str) -> list[tuple[str, str]]:
    """A target's instructions with those of the stages that it is made from, these first."""
    named = stages()
    first, *own = named[target]
    base = first[1].partition(" AS ")[0]
    made = steps(base) if base in named else []
    for word, arguments in own:
        made += (
            steps(arguments.split()[0].partition("=")[2])
            if _copies_a_stage(word, arguments)
            else []
        )
        made.append((word, arguments))
    return made


def is_of_the_machine(command: str) -> bool:
    """Whether a RUN line changes the machine itself."""
    return command.split()[0] in OF_THE_MACHINE


def _copies_a_stage(word: str, arguments: str) -> bool:
    return word == "COPY" and arguments.startswith("--from=")


class Scratch:
    """A folder in place of the image's root.

    Args:
        folder: the new root.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve()
        self._here = self._root
        self._environment = dict(os.environ)

    def do(self, word: str, arguments: str) -> str | None:
        """Carry out one instruction; says why, where it is left out."""
        if word == "RUN":
            if is_of_the_machine(arguments):
                return "changes the machine itself"
            command = self._below(arguments)
            subprocess.run(
                ["sh", "-ec", command], check=True, cwd=self._here, env=self._environment
            )
        elif word == "WORKDIR":
            self._here = Path(self._below(arguments))
            self._here.mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            for pair in shlex.split(arguments):
                name, _, value = pair.partition("=")
                value = value.replace("$PATH", self._environment["PATH"])
                self._environment[name] = self._below(value)
        elif word == "COPY" and not _copies_a_stage(word, arguments):
            *sources, to = arguments.split()
            for source in sources:
                self._copy(ROOT / source, self._here / to, to.endswith("/"))
        elif word != "ARG":  # pip's, which it takes from the environment by itself
            return "there is no image"
        return None

    def _below(self, text: str) -> str:
        return _PLACES.sub(f"{self._root}/", text)

    def _copy(self, source: Path, to: Path, into: bool) -> None:
        to = to / source.name if into else to
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, to, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(source, to)


def main() -> int:
    """Carries out or lists the steps of a target; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--target", default="cpu", choices=sorted(stages()))
    parser.add_argument("--list", action="store_true", help="say what would be done")
    chosen = parser.parse_args()
    if not chosen.list:
        chosen.folder.mkdir(parents=True)
    scratch, left_out = Scratch(chosen.folder), []
    for word, arguments in steps(chosen.target):
        print(f"{word} {arguments}", flush=True)
        if chosen.list:
            continue
        try:
            reason = scratch.do(word, arguments)
        except subprocess.CalledProcessError as error:
            print(f"failed with exit code {error.returncode}", file=sys.stderr)
            return 1
        if reason is not None:
            left_out.append(f"{word} {arguments}: {reason}")
    print("\n".join(["", f"{len(left_out)} steps left out:", *left_out]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
