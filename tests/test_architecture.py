"""The rules of the house: who may import whom, what loads no engine, how large things are."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rayward.cluster.stages import declared_stages

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rayward"
ROOMS = ("cluster", "actors", "pipelines", "services", "k8s")
MAY_IMPORT = {
    "cluster": {"cluster"},
    "actors": {"cluster", "actors"},
    "pipelines": {"cluster", "actors", "pipelines"},
    "services": {"cluster", "actors", "services"},
    "k8s": {"cluster", "actors", "pipelines", "k8s"},
}
HEAVY = {"torch", "transformers", "vllm", "deepspeed"}
ENGINES = ("torch", "vllm", "deepspeed", "ray")
LONGEST_FILE = 350
MOST_MODULES = 20

# Folders and files of `pipelines/` that may import what stands to the right of them.
STAGES = (
    "supervised",
    "rejection_sampling",
    "ppo",
    "red_teaming",
    "context_distillation",
    "evaluation",
)
STAGES_MAY_IMPORT = {"stage", "run", "report", "tiny_world"}
FOLDERS_MAY_IMPORT = {
    **{stage: STAGES_MAY_IMPORT for stage in STAGES},
    # The two that learn from samples of their own use the supervised fit.
    "rejection_sampling": STAGES_MAY_IMPORT | {"supervised"},
    "context_distillation": STAGES_MAY_IMPORT | {"supervised"},
    # Rewrites by a model are cleaned as imported prompts are.
    "red_teaming": STAGES_MAY_IMPORT | {"data"},
    "stage": set(),
    "run": {"stage", "tiny_world"},
    "report": {"stage", "evaluation"},
    "runner": {"stage", "run", "report", *STAGES},
    "data": set(),
    "doctor": {"run"},
    "tiny_world": set(),
    "recipes": set(),
    "cli": {"data", "doctor", "runner"},
}
# What services are made of, from what others stand on to what nothing does.
SERVICES = ("http", "rewards", "policy", "jobs", "gateway")

BARE = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(ROOMS)})\b", re.MULTILINE)

# Read by whoever only looks at a run or at a recipe.
WITHOUT_ENGINES = (
    "rayward",
    "rayward.cluster.config.load",
    "rayward.cluster.stages",
    "rayward.pipelines.report.report",
    "rayward.pipelines.ppo.advantages",
    "rayward.pipelines.ppo.experience",
    "rayward.pipelines.evaluation.gates",
    "rayward.pipelines.evaluation.judgements",
    "rayward.services.gateway.from_run",
)
# The stages of a recipe that names none, and a key of a result.
NAMED = {
    *(
        ("rayward.cluster.config.recipe", stage)
        for stage in ("sft", "reward_safety", "reward_helpfulness", "ppo")
    ),
    ("rayward.cluster.records.red_teaming", "red_teaming"),
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the rooms, by its dotted name; not the programs beside the image."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
            if "image" not in parts:
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(name: str) -> str:
    """`cluster` of `rayward.cluster.x`; empty for the package itself and for other packages."""
    package, _, rest = name.partition(".")
    return rest.partition(".")[0] if package == PACKAGE else ""


def part_of(name: str) -> str:
    """What stands directly in a room: a folder, or a module of its own."""
    return ".".join(name.split(".")[1:3])


@cache
def between_parts() -> dict[str, set[str]]:
    """Which parts import which, at import time or later; types alone do not count."""
    arrows: dict[str, set[str]] = {}
    for name in modules():
        for node in executed(tree(name)):
            for target in imported(name, node):
                known = target if target in modules() else target.rpartition(".")[0]
                if known in modules() and known.count(".") > 1 and name.count(".") > 1:
                    arrows.setdefault(part_of(name), set()).add(part_of(known))
    return {part: targets - {part} for part, targets in arrows.items()}


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


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may run, but for those under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed(child)


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
    runner = "rayward.pipelines.runner.run_recipe"
    assert runner in all_imports("rayward.pipelines.cli")
    cli = tree("rayward.pipelines.cli")
    assert runner not in {t for node in at_import_time(cli) for t in imported("", node)}
    assert "pipelines.runner" in between_parts()["pipelines.cli"]


def test_every_room_is_linked_into_the_package() -> None:
    for room in ROOMS:
        link = ROOT / "src" / PACKAGE / room
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / room
    ours = {path.name for path in (ROOT / "src" / PACKAGE).iterdir()} - {"__pycache__"}
    assert ours == {"__init__.py", *ROOMS}


def test_nobody_imports_a_room_by_its_bare_name() -> None:
    """In a checkout the rooms lie on the path of who starts Python there, and would be there twice.

    Also in tests, benchmarks, and what is written down for processes of their own.
    """
    wrong = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        texts = [path.read_text(encoding="utf-8")]
        texts += [
            node.value
            for node in ast.walk(ast.parse(texts[0]))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        wrong += [path.name for text in texts if BARE.search(text)]
    wrong += [name for name, path in modules().items() if BARE.search(path.read_text())]
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name in modules()
        if room_of(name) == room
        for target in sorted(all_imports(name))
        if room_of(target) in set(ROOMS) - MAY_IMPORT[room]
    ]
    assert wrong == []


def test_folders_of_pipelines_import_as_they_may() -> None:
    """records < run < stages < runner; no stage imports another, but for its fit."""
    found = {
        part.partition(".")[2]: {
            target.partition(".")[2] for target in targets if target.startswith("pipelines.")
        }
        for part, targets in between_parts().items()
        if part.startswith("pipelines.")
    }
    assert found.keys() <= FOLDERS_MAY_IMPORT.keys()
    wrong = {part: targets - FOLDERS_MAY_IMPORT[part] for part, targets in found.items()}
    assert {part: targets for part, targets in wrong.items() if targets} == {}
    assert found["runner"] >= {"run", "evaluation"}


def test_folders_of_services_stand_on_one_another() -> None:
    for index, folder in enumerate(SERVICES):
        own = between_parts()[f"services.{folder}"]
        above = {f"services.{one}" for one in SERVICES[index + 1 :]}
        assert own & above == set(), folder


def test_no_folders_import_in_a_circle() -> None:
    arrows = between_parts()
    done: set[str] = set()

    def visit(part: str, way: list[str]) -> None:
        if part in way:
            pytest.fail(" -> ".join([*way[way.index(part) :], part]))
        if part not in done:
            for target in sorted(arrows.get(part, ())):
                visit(target, [*way, part])
            done.add(part)

    for part in arrows:
        visit(part, [])
    assert len(done) > 40


def test_no_folder_is_full() -> None:
    folders: dict[Path, int] = {}
    for path in modules().values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(folder): n for folder, n in folders.items() if n > MOST_MODULES} == {}


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
        if room_of(name) == "cluster"
        for target in sorted(all_imports(name))
        if target.split(".")[0] in HEAVY
    ]
    assert wrong == []


def loaded_by(*names: str) -> str:
    """Which engines a fresh process has loaded once it has imported some modules."""
    code = (
        f"import sys\nimport {', '.join(names)}\n"
        f"print([one for one in {ENGINES} if one in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_what_only_reads_loads_no_engine() -> None:
    """Records, report, advantages, experience, gates, configuration, and what stages declare."""
    records = [name for name in modules() if part_of(name) == "cluster.records"]
    configuration = [name for name in modules() if part_of(name) == "cluster.config"]
    stages = [name for name in modules() if name.endswith(".stage")]
    assert len(records) > 10
    assert len(stages) == len(STAGES) + 1
    assert loaded_by(*WITHOUT_ENGINES, *records, *configuration, *stages) == "[]"
    # What does load them is seen.
    assert "'ray'" in loaded_by("rayward.cluster.ray_runtime.session")


def test_the_command_line_loads_no_engine() -> None:
    """Through other libraries too; so `rayward --help` and bad input answer at once."""
    code = (
        "import sys\nfrom rayward.cluster.cli import make_app\nmake_app()\n"
        f"print([one for one in {sorted(HEAVY)!r} if one in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_nobody_but_a_stage_goes_by_its_name() -> None:
    """What holds for one stage alone is said in its folder, where the contract asks for it.

    Elsewhere a stage's name is never a text that is compared, looked up or listed: its section of
    a recipe is a field. A stage may name those whose data it gathers.
    """
    # "evaluation" is also what a result calls its numbers.
    making = {name for name, one in declared_stages().items() if one.makes != "measurements"}
    named = set()
    for name, path in modules().items():
        own = {stage for stage in making if folder_of(stage) == path.parent}
        if name.endswith(".stage"):
            own |= {one for stage in own for one in declared_stages()[stage].gathers}
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Constant) and node.value in making - own:
                named.add((name, node.value))
    assert named == NAMED


def folder_of(stage: str) -> Path:
    module = type(declared_stages()[stage]).__module__
    return modules()[module].parent


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
        } | {
            node.name
            for node in tree(module).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert attribute in names, entry
