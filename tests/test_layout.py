"""The rooms: imports run one way, and docs/architecture.md names every module."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["files", "cleaning", "models", "retrieval", "service"]  # each may import those before it, and itself
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
MODULES = sorted([*(ROOT / "marketplace").rglob("*.py"), *(ROOT / "demo").glob("*.py")])


def imported(path: Path) -> Iterator[str]:
    """The dotted name of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    top, room = path.relative_to(ROOT).parts[:2]
    allowed = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ROOMS if top == "demo" else []
    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package not in SCRIPTS | {"tests", "benchmarks"}, f"{path} imports {name}"
        assert package != "demo" or top == "demo", f"{path} imports {name}"
        if package == "marketplace":
            assert rest.partition(".")[0] in [*allowed, "metrics"], f"{path} imports {name}"


def test_every_module_stands_in_a_room():
    at_the_door = {path.name for path in (ROOT / "marketplace").iterdir() if path.name != "__pycache__"}
    assert at_the_door == {"__init__.py", "metrics.py", *ROOMS}


def test_the_layout_in_the_docs_is_the_layout():
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("```\n")[2].partition("```")[0]
    folders, named = [], set()
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folders[len(indent) // 2 :] = [name] if name.endswith("/") else []
        if name.endswith(".py"):
            named.add("".join(folders) + name)
    there = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.py"), *MODULES] if path.name != "__init__.py"}
    assert named == there


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_uses_of_the_project_is_there(path):
    """No run of the suite is as long as theirs."""
    tree, modules = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "marketplace":
            package = importlib.import_module(node.module)
            for alias in node.names:
                found = getattr(package, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                if isinstance(found, ModuleType):
                    modules[alias.asname or alias.name] = found
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert [f"{name}.{attribute}" for name, attribute in used if name in modules and not hasattr(modules[name], attribute)] == []
