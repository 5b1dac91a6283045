"""What is never committed: paths of a machine, and addresses of package indexes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def committed() -> dict[str, str]:
    """Every committed text file, as it lies here."""
    if shutil.which("git") is None:
        pytest.skip("git is not there to say what is committed")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    texts = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            texts[name] = data.decode("utf-8")
    assert "pyproject.toml" in texts
    return texts


def test_no_committed_file_names_a_path_of_this_machine(committed: dict[str, str]) -> None:
    places = {str(ROOT), str(ROOT.parent), str(Path.home()), sys.prefix}
    # A short place such as / or /app, in a container, is a part of many harmless texts.
    places = {place for place in places if len(Path(place).parts) > 2 or place == str(ROOT)}
    pattern = re.compile("|".join(rf"{re.escape(place)}(?![\w-])" for place in sorted(places)))
    assert [name for name, text in committed.items() if pattern.search(text)] == []


def test_no_committed_file_names_a_package_index(committed: dict[str, str]) -> None:
    """Where packages come from is the machine's business: pip's own settings say it."""
    pattern = re.compile(
        r"--(extra-)?(index-url|find-links)[= ]\S*://|^\s*(extra-)?index-url\s*=|://\S*/simple\b"
        r"|^\s*\[\[tool\.uv\.index\]\]",
        re.MULTILINE,
    )
    assert pattern.search("--index-url https://example.org/simple")
    assert pattern.search('index-url = "https://example.org"')
    own = Path(__file__).resolve().relative_to(ROOT).as_posix()
    wrong = [name for name, text in committed.items() if name != own and pattern.search(text)]
    assert wrong == []
    for name in ("pyproject.toml", "requirements/lock.txt", "requirements/setup.sh", "Makefile"):
        assert "://" not in committed[name], name
