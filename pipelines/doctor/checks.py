"""`rayward doctor`: which checks there are, what each needs, and what helps where one fails."""

from dataclasses import replace

from rayward.pipelines.doctor.process import Check, Place, extensions_folder

_MACHINE, _PARTS = "rayward.pipelines.doctor.machine", "rayward.pipelines.doctor.parts"
_SET_UP = "run `make setup` (on a GPU machine: pip install '.[gpu]')"
_REINSTALL = "if Packages is ok, install anew: remove .venv and run `make setup`"
CHECKS = (
    Check("packages", "Packages", f"{_MACHINE}:check_packages", 20, _SET_UP),
    Check(
        "memory",
        "Memory",
        f"{_MACHINE}:check_memory",
        20,
        "end other programs, raise the container's limit, or take a larger machine",
    ),
    Check(
        "disk",
        "Disk",
        f"{_MACHINE}:check_disk",
        20,
        "make room, or go to another disk: --out for runs, RAY_TMPDIR for Ray",
    ),
    Check(
        "shared-memory",
        "Shared memory",
        f"{_MACHINE}:check_shared_memory",
        20,
        "remove files from /dev/shm, or start the container with more (docker: --shm-size=2g)",
    ),
    Check("torch", "PyTorch", f"{_PARTS}:check_torch", 60, _REINSTALL),
    Check(
        "ray",
        "Ray",
        f"{_PARTS}:check_ray",
        90,
        "if other Rays are left over on this machine, end them (`ray stop` ends all); what Ray "
        "says itself is in ray/session_latest/logs under RAY_TMPDIR, or else under /tmp",
        parts=frozenset({"ray"}),
    ),
    Check(
        "vllm",
        "vLLM",
        f"{_PARTS}:check_vllm",
        120,
        _REINSTALL,
        needs=("torch",),
        parts=frozenset({"vllm"}),
    ),
    Check(
        "deepspeed-op",
        "DeepSpeed's op",
        f"{_PARTS}:check_deepspeed_op",
        60,
        "remove TORCH_EXTENSIONS_DIR, or else .venv/torch_extensions, and call this again: "
        "it compiles",
        needs=("torch",),
        parts=frozenset({"deepspeed"}),
    ),
    Check(
        "deepspeed",
        "DeepSpeed",
        f"{_PARTS}:check_deepspeed",
        60,
        _REINSTALL,
        needs=("torch", "deepspeed-op"),
        parts=frozenset({"deepspeed"}),
    ),
    Check(
        "reward-model",
        "Reward model",
        f"{_PARTS}:check_reward_model",
        60,
        _REINSTALL,
        needs=("torch",),
    ),
    Check(
        "weight-sync",
        "Weight sync",
        f"{_PARTS}:check_weight_sync",
        180,
        "the parts work alone and not together: please report it, with this table",
        needs=("ray", "vllm", "deepspeed"),
        parts=frozenset({"ray", "vllm", "deepspeed"}),
    ),
)
# Compiling takes longer than loading.
_COMPILE_S = 180
ADDRESS = Check("address", "Address", f"{_PARTS}:check_address", 30, "", parts=frozenset({"ray"}))
_JOIN_REMEDY = (
    "see whether the cluster is well (`ray status` on its head), and whether its token is in "
    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
)


def adapted(check: Check, place: Place) -> Check:
    """The check as it is to run here and now."""
    if check.name == "deepspeed-op" and _must_compile():
        return replace(check, limit_s=_COMPILE_S)
    if check.name == "ray" and place.address is not None:
        return replace(check, remedy=_JOIN_REMEDY)
    return check


def _must_compile() -> bool:
    """Whether there is no op yet, and nobody compiles it either."""
    ops = extensions_folder()
    return not any(ops.glob("*/*.so")) and not any(ops.glob("*/lock"))
