"""Processes that need not import vLLM, DeepSpeed and torch: forks of one that has.

Of a test suite's time on two cores two thirds would go into imports: 10 CPU-seconds for each
sampler, 8 for each learner, 13 for each `rayward run`. Workers of the tests' own Ray, the commands
that join it, and most services and nodes with their workers therefore start here. What starts as
it does in use is for the tests of the doctor, of draining, and jobs' own commands.

    stand-in (what Ray or a test starts) --request--> server --fork--> keeper --fork--> program

The stand-in ends as the program ends and passes signals on; when it is killed, so is the program.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import pickle
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

SOCKET = "RAYWARD_TEST_PRELOADED"
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWNET = 0x40000000
_SIZE = struct.Struct("!Q")
_STATUS = struct.Struct("!i")
# A helper of vLLM's sampler, of one line: each engine would trace it for a second.
_NOTHING_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}
_MODULES = (
    "deepspeed",
    "mlflow",
    "peft",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


def call(function: Callable[..., None], *arguments: object) -> subprocess.Popen[bytes]:
    """A fork that calls a function of a test file, for a test that has the fixture `preloading`."""
    folder = Path(os.environ[SOCKET]).parent
    with tempfile.NamedTemporaryFile(prefix="call-", dir=folder, delete=False) as file:
        # Where it finds the test file must be known before that is looked for.
        pickle.dump(sys.path, file)
        pickle.dump((function, arguments), file)
    return subprocess.Popen([sys.executable, __file__, "call", file.name])


def command(*arguments: str, program: Literal["rayward", "ray"] = "rayward") -> list[str]:
    """The command line of a program in a fork, for a test that has the fixture `preloading`.

    A Ray that it starts has its workers here as well. It is in the network namespace where the
    command is run.
    """
    return [sys.executable, __file__, program, *arguments]


@contextlib.contextmanager
def preloading(folder: Path) -> Iterator[None]:
    """A server for the time of the block, for whoever inherits this process's environment."""
    path, said = str(folder / "socket"), folder / "server.log"
    log = said.open("wb")
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", path],
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **_NOTHING_COMPILED},
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n", said.read_text()[-2000:]
        os.environ[SOCKET] = path
        yield
    finally:
        os.environ.pop(SOCKET, None)
        server.kill()
        server.wait()
        log.close()


def stand_in() -> NoReturn:
    """Have the server run this process's program, and end as it ends."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[SOCKET])
        asked = {"argv": sys.argv[1:], "environment": dict(os.environ), "cwd": os.getcwd()}
        body = json.dumps(asked).encode()
        network = os.open("/proc/self/ns/net", os.O_RDONLY)
        socket.send_fds(server, [_SIZE.pack(len(body))], [0, 1, 2, network])
        server.sendall(body)
        for number in _PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        said = server.recv(_STATUS.size)
    # Without a word: the server is gone.
    code = _STATUS.unpack(said)[0] if said else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(path: str) -> None:
    """Import everything, and then fork for whoever asks, until the end of who started this."""
    _end_with_parent()
    # Ray reads its environment once, as it is loaded: each fork loads it for itself.
    sys.modules["ray"] = None  # type: ignore[assignment]
    with contextlib.redirect_stdout(sys.stderr):
        for name in _MODULES:
            importlib.import_module(name)
    del sys.modules["ray"]
    # Whoever collects garbage, as vLLM does for each model, would look at all of that, and by that
    # make a copy of its own.
    gc.collect()
    gc.freeze()
    # Keepers are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            asking, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _keep(asking)
            asking.close()


def _keep(asking: socket.socket) -> NoReturn:
    """Run a program in a child; tell how it ended, pass signals on, kill it when asked no more.

    What the program leaves behind, as a worker of Ray leaves Serve's HAProxy, is killed after it:
    Ray looks for that among the children of its own processes.
    """
    _end_with_parent()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, descriptors, _, _ = socket.recv_fds(asking, _SIZE.size, 4)
    size, body = _SIZE.unpack(head)[0], b""
    while len(body) < size:
        part = asking.recv(size - len(body))
        if not part:
            os._exit(0)  # who asked was killed
        body += part
    program = os.fork()
    if program == 0:
        asking.close()
        _become(json.loads(body), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    ended = os.pidfd_open(program)
    while True:
        ready, _, _ = select.select([asking, ended], [], [])
        if ended in ready:
            break
        wanted = asking.recv(1)
        os.kill(program, wanted[0] if wanted else signal.SIGKILL)
        if not wanted:
            break
    _, status = os.waitpid(program, 0)
    _kill_children()
    with contextlib.suppress(OSError):
        asking.send(_STATUS.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _become(asked: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Be the program: its descriptors, its network, its environment, its arguments."""
    _end_with_parent()
    network = descriptors.pop()
    if not os.path.sameopenfile(network, own := os.open("/proc/self/ns/net", os.O_RDONLY)):
        _enter(network)
    os.close(network)
    os.close(own)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    # For what it starts in its turn.
    os.environ.update(_NOTHING_COMPILED)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What is frozen at the end is leaked, and nanobind has words for that.
    atexit.register(gc.unfreeze)
    import torch

    # OpenMP has read the variable of the server.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    _run(asked["argv"])
    # What is raised here, by this or above, ends the process as it ends any program.
    sys.exit()


def workers_are_forks(patch: Callable[[object, str, object], None]) -> None:
    """Have whatever Ray starts in this process start its workers here.

    Args:
        patch: `setattr`, or one that is taken back.
    """
    from ray._private.parameter import RayParams

    # `ray.init` has no arguments for them. Nobody listens to the monitor, who reads every worker's
    # log for as long as Ray runs.
    init = functools.partialmethod(
        RayParams.__init__, worker_path=__file__, include_log_monitor=False
    )
    patch(RayParams, "__init__", init)


def _run(argv: list[str]) -> None:
    if argv[0] == "rayward":
        from rayward.cluster.cli import main

        workers_are_forks(setattr)
        sys.argv = argv
        main()
    elif argv[0] == "ray":
        from ray.scripts.scripts import main as ray

        workers_are_forks(setattr)
        sys.argv = argv
        ray()
    elif argv[0] == "call":
        with Path(argv[1]).open("rb") as file:
            sys.path = pickle.load(file)
            function, arguments = pickle.load(file)
        function(*arguments)
    else:
        sys.argv = ["default_worker.py", *argv]
        runpy.run_module("ray._private.workers.default_worker", run_name="__main__")


def _kill_children() -> None:
    import psutil

    while children := psutil.Process().children():
        for child in children:
            child.kill()
            child.wait()


def _enter(network: int) -> None:
    """Be in a network namespace; this takes root only where it is another one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    # The folder of the tests is nothing that programs look into.
    del sys.path[0]
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        stand_in()
