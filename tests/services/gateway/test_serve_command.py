"""What `rayward serve` refuses, in one line and with exit code 2, before anything starts."""

import socket
import subprocess
from pathlib import Path

import yaml

from tests.serving import RAYWARD, rayward


def refused(tmp_path: Path, document: object, *arguments: str) -> str:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(document))
    command = [RAYWARD, "serve", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    return line


def test_an_address_that_lets_others_in_needs_keys(tmp_path: Path) -> None:
    line = refused(tmp_path, {"jobs": {}}, "--host", "0.0.0.0")
    assert line.startswith("rayward: http.host: got '0.0.0.0', expected 127.0.0.1, or keys")


def test_keys_that_are_not_there_let_nobody_in(tmp_path: Path) -> None:
    document = {"jobs": {}, "keys": {"path": "nowhere.json"}, "http": {"host": "0.0.0.0"}}
    assert "keys.path" in refused(tmp_path, document)


def test_unknown_settings_and_contradictions_are_named(tmp_path: Path) -> None:
    assert "http.prot" in refused(tmp_path, {"http": {"prot": 1}, "jobs": {}})
    assert "reward" in refused(tmp_path, {})
    guarded = {"policy": {"path": "x", "guard": {"safety_floor": 0.5}}}
    assert "policy.guard.safety_floor" in refused(tmp_path, guarded)
    assert "--reward" in refused(tmp_path, {"jobs": {}}, "--reward")


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(tmp_path, {"jobs": {}}, "--port", str(port))
    assert line.startswith(f"rayward: http.port: got {port}, expected a free port")


def test_a_document_and_a_run_at_once_are_refused(tmp_path: Path) -> None:
    assert "CONFIG" in refused(tmp_path, {"jobs": {}}, "--run", str(tmp_path))


def test_the_command_line_names_the_commands() -> None:
    listed = rayward("--help").stdout
    assert all(name in listed for name in ("serve", "submit", "jobs", "score", "keys"))
