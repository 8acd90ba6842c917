"""The house: imports point one way, no circles, the engine needs three packages, nothing prints, files stay readable."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lib_merge"
# rooms from left to right; a file imports its own room and rooms further left, never one beside it
ORDER = (
    ("errors",),
    ("files",),
    ("linalg",),
    ("methods", "ranks"),
    ("families",),
    ("adapters",),
    ("loaders", "base"),
    ("recipe", "recipe_edits"),
    ("metadata", "blocks"),
    ("engine",),
    ("transform", "analysis", "calibrate", "tune"),
    ("library", "kept", "samples"),
    ("api",),
    ("__init__",),
    ("cli", "ui"),
    ("webui", "__main__"),
)
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
BESIDE = {("recipe_edits", "recipe")}  # one file each; the second stands left of the first
ENGINE = {"torch", "numpy", "safetensors"}
OPTIONAL = {"tqdm": "cli"}
LONGEST = 500
LONGEST_FUNCTION = 50  # without its docstring


def _modules() -> dict[str, Path]:
    """Return module name -> file of everything in the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _names(path: Path) -> Iterator[str]:
    """Yield everything a file imports, wherever in it: at its head, inside functions, for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _graph() -> dict[str, set[str]]:
    """Return module -> the modules of the package that it imports."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        targets = set()
        for name in _names(path):
            if name.split(".")[0] == "lib_merge":
                targets.add(name if name in MODULES else name.rpartition(".")[0])
        graph[module] = targets - {module}
    return graph


def _allowed(own: str, other: str) -> bool:
    return own == other or PLACE[other] < PLACE[own] or (own, other) in BESIDE


def test_imports_point_one_way():
    wrong = []
    for module, targets in _graph().items():
        own = _room(module)
        wrong += [f"{module} imports {t}" for t in sorted(targets) if not _allowed(own, _room(t))]
    assert not wrong, "\n".join(wrong)


def test_the_map_of_contributing_has_every_folder_in_its_place():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.search(r"^errors ←.*?(?=```)", text, re.MULTILINE | re.DOTALL)
    parts = [[room for room in re.findall(r"\w+", part) if room in PLACE] for part in drawn[0].split("←")]
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= {room for part in parts for room in part}
    places = [PLACE[room] for part in parts for room in part]
    assert places == sorted(places)


def test_no_circles():
    graph = _graph()
    seen: dict[str, int] = {}
    circles = []

    def walk(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            circles.append(" → ".join((*way[way.index(module) :], module)))
            return
        if seen.get(module):
            return
        for target in sorted(graph.get(module, ())):
            walk(target, (*way, module))
        seen[module] = 1

    for module in sorted(graph):
        walk(module, ())
    assert not circles, "\n".join(circles)


def test_the_engine_needs_three_packages():
    wrong = []
    for module, path in MODULES.items():
        own = _room(module)
        for name in _names(path):
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top in ENGINE or top == "lib_merge"
            if own not in ("ui", "webui") and not known and OPTIONAL.get(top) != own:
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_prints_and_files_stay_readable():
    wrong = []
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        if any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls):
            wrong.append(f"{module} prints")
        if text.count("\n") > LONGEST:
            wrong.append(f"{module} has more than {LONGEST} lines")
    assert not wrong, "\n".join(wrong)


def _public(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield what others may use of a file, with its name."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_":
            yield f"{owner}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{owner}.{node.name}")


def test_functions_fit_on_a_screen_and_what_is_public_says_what_it_is():
    wrong = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [
            f"{name} has no docstring"
            for name, node in _public(tree.body, module)
            if not ast.get_docstring(node)
        ]
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                if lines > LONGEST_FUNCTION:
                    wrong.append(f"{module}.{node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)
