"""Removes what an environment holds beside a package and all it needs: `prune.py NAME EXTRA...`.

The lock has the tools of development too, which have no place in an image.
"""

import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, extras: tuple[str, ...]) -> set[str]:
    """The canonical names of a package and of everything that it asks for, with some extras."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        try:
            requires = importlib.metadata.requires(asked[0]) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # left out of the lock, where it would bring CUDA builds (pyproject.toml)
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (*asked[1], "")):
                own = tuple(sorted(requirement.extras))
                waiting.append((canonicalize_name(requirement.name), own))
    return {found for found, _ in seen}


def main() -> None:
    """Uninstalls the others, and says which."""
    kept = needed(sys.argv[1], tuple(sys.argv[2:])) | {"pip", "setuptools", "wheel"}
    there = {canonicalize_name(one.metadata["Name"]) for one in importlib.metadata.distributions()}
    others = sorted(there - kept)
    print(f"removing {len(others)} of {len(there)} packages: {', '.join(others)}")
    if others:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", *others], check=True)


if __name__ == "__main__":
    main()
