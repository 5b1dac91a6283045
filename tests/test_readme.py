"""The README says where things are, and names nothing that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "actors", "pipelines", "services", "k8s")


def test_every_folder_of_code_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = [
        path.parent.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    ]
    assert len(folders) > 25
    assert [folder for folder in folders if f"]({folder})" not in readme] == []


def test_every_link_in_the_readme_leads_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert [target for target in targets if not (ROOT / target).exists()] == []
