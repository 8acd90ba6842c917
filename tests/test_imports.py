"""Imports point one way, the engine needs three packages, and nothing prints."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lib_merge"
# layer -> number; a file may import its own layer and lower ones
LAYERS = {
    "errors": 0, "files": 1, "deltas": 2, "adapters": 3, "methods": 4, "compress": 4, "recipe": 5, "presets": 5, "blockspec": 6,
    "metadata": 6, "analysis": 6, "engine": 7, "history": 8, "samples": 8, "api": 8, "recipebook": 8, "console": 9, "cli_text": 9, "cli_arguments": 9, "recipe_checks": 5, "cli_analyze": 9, "cli": 10, "ui": 10, "webui": 11,
    "__init__": 9, "__main__": 11,
}  # fmt: skip
ENGINE = {"torch", "numpy", "safetensors"}
OPTIONAL = {"tqdm": {"console"}}


def _files():
    return sorted(path for path in PACKAGE.rglob("*.py"))


def _layer(path):
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = _layer(path)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "lib_merge":
            target = parts[1] if parts[1] in LAYERS else "__init__"
            assert LAYERS[target] <= LAYERS[own], f"{path.name} imports {name}"
        elif own not in ("ui", "webui"):
            known = parts[0] in sys.stdlib_module_names or parts[0] in ENGINE or own in OPTIONAL.get(parts[0], ())
            assert known, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_prints_and_files_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert text.count("\n") <= 330
