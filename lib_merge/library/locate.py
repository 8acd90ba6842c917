"""Finding a recipe's sources again: by name and size, then by size alone; a hash settles it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lib_merge.errors import RecipeError
from lib_merge.files.hashes import file_hash
from lib_merge.recipe import Source

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
_MOST = 200_000


def finder(folders: Sequence[Path], exclude: Path) -> Callable[[Source], Path]:
    """Return a function that finds the file of a source.

    Args:
        folders: searched with their sub-folders, first match wins.
        exclude: the merged file itself.
    """
    listed: list[Path] = []

    def files() -> list[Path]:
        if not listed:
            listed.extend(
                path for folder in dict.fromkeys(folders) for path in _walk(folder) if path != exclude
            )
        return listed

    def find(source: Source) -> Path:
        named = [path for path in files() if path.name == source.name]
        if not source.sha256 and named:
            return named[0]
        same_size = [path for path in files() if _size(path) == source.size and path not in named]
        for path in (*named, *same_size):
            if _size(path) == source.size and file_hash(path) == source.sha256:
                return path
        where = "its file has changed since" if named else "no such file is in the folders searched"
        message = f"the source {source.name or source.sha256[:12]} was not found: {where}."
        raise RecipeError(message)

    return find


def _walk(folder: Path) -> Iterator[Path]:
    try:
        for count, path in enumerate(sorted(folder.rglob("*"))):
            if count > _MOST:
                return
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
    except OSError:
        return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
