"""The rules of the house: who may import whom, how long a file is, what is never committed."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cluster", "actors", "pipelines", "services", "k8s")
MAY_IMPORT = {
    "cluster": {"cluster"},
    "actors": {"cluster", "actors"},
    "pipelines": {"cluster", "actors", "pipelines"},
    "services": {"cluster", "actors", "services"},
    "k8s": {"cluster", "actors", "pipelines", "k8s"},
}
HEAVY = {"torch", "transformers", "vllm", "deepspeed"}
LONGEST_FILE = 350


@cache
def modules() -> dict[str, Path]:
    """Every module of the rooms, by its dotted name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def imported(name: str, node: ast.AST) -> list[str]:
    """What an import statement names: modules, and for `from a import b` also a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = modules()[name].name == "__init__.py"
            package = name.split(".") if is_package else name.split(".")[:-1]
            up = package[: len(package) - node.level + 1]
            base = ".".join([*up, base] if base else up)
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return []


def all_imports(name: str) -> set[str]:
    """Imports anywhere in a module, inside functions too."""
    return {target for node in ast.walk(tree(name)) for target in imported(name, node)}


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported, but for those under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def test_the_walk_sees_the_rooms() -> None:
    """A rule over nothing would hold: the project is there, and its imports are seen."""
    assert {
        "rayward.cluster.config.recipe",
        "rayward.actors.models.loading",
        "rayward.pipelines.cli",
    } <= modules().keys()
    assert "torch" in all_imports("rayward.actors.models.loading")
    # Inside a function only.
    assert "rayward.pipelines.runner.run_recipe" in all_imports("rayward.pipelines.cli")
    later = {
        t for node in at_import_time(tree("rayward.pipelines.cli")) for t in imported("", node)
    }
    assert "rayward.pipelines.runner.run_recipe" not in later


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        if name.split(".")[0] == room
        for target in sorted(all_imports(name))
        if target.split(".")[0] in set(ROOMS) - MAY_IMPORT[room]
    ]
    assert wrong == []


def test_no_room_imports_the_tests_or_the_benchmarks() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        for target in all_imports(name)
        if target.split(".")[0] in {"tests", "bench"}
    ]
    assert wrong == []


def test_cluster_knows_no_model_library() -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        if name.split(".")[0] == "cluster"
        for target in sorted(all_imports(name))
        if target.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_configuration_and_command_line_load_without_torch() -> None:
    """Through other libraries too; so `rayward --help` and bad input answer at once."""
    code = (
        "import sys, rayward.cluster.config.recipe, rayward.cluster.config.load\n"
        f"heavy = {sorted(HEAVY | {'ray'})!r}\n"
        "print([one for one in heavy if one in sys.modules])\n"
        "from rayward.cluster.cli import make_app\n"
        "make_app()\n"
        f"print([one for one in {sorted(HEAVY)!r} if one in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["[]", "[]", ""]


def test_modules_import_in_no_circle() -> None:
    graph = {
        name: {
            target
            for node in at_import_time(tree(name))
            for target in imported(name, node)
            if target in modules() and target != name
        }
        for name in modules()
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            pytest.fail(" -> ".join([*way[way.index(name) :], name]))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    assert sum(map(len, graph.values())) > len(graph) / 2


def test_files_stay_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name in modules() if not ast.get_docstring(tree(name))] == []


def test_nothing_is_caught_broadly() -> None:
    """`except Exception` hides what it was not written for; raising again does not."""
    broad = {"Exception", "BaseException"}
    wrong = []
    for name in modules():
        for node in ast.walk(tree(name)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = ast.walk(node.type) if node.type else [ast.Name("BaseException")]
            caught = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
            last = node.body[-1]
            raises_again = isinstance(last, ast.Raise) and last.exc is None
            if caught & broad and not (raises_again and "Exception" not in caught):
                wrong.append(name)
    # A thread has nobody to raise to: the one that waits for it does, when it asks for the result.
    assert wrong == ["rayward.pipelines.supervised.fit"]


def test_every_command_and_plugin_of_the_project_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["scripts"].values()]
    for group in project["entry-points"].values():
        named += group.values()
    for entry in named:
        module, _, attribute = entry.partition(":")
        names = {
            target.id
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        } | {node.name for node in tree(module).body if isinstance(node, ast.FunctionDef)}
        assert attribute in names, entry


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
