"""The README says what every file is for, and names nothing that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "actors", "pipelines", "services", "k8s")


def test_every_file_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    files = [
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".yaml", ".jinja") and path.name != "__init__.py"
        # The manifests have a README of their own.
        if room != "k8s" or path.suffix == ".py"
    ]
    assert len(files) > 50
    assert [path for path in files if f"]({path})" not in readme] == []


def test_every_link_in_the_readme_leads_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert [target for target in targets if not (ROOT / target).exists()] == []
