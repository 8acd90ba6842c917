"""How long the header of a merge will be: keys, shapes and metadata are known before a tensor is read.

Only ranks may come out smaller than foreseen, and modules may be left out; `StreamWriter.fit` then moves the
data to where the header ends.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from lib_merge import metadata
from lib_merge.adapters import LoraFile
from lib_merge.engine.tree import Node, Target, Tree
from lib_merge.families import encoder_of, family_of
from lib_merge.files.header import header_bytes, header_room
from lib_merge.files.names import MAX_NAME
from lib_merge.loaders import Contents, Naming, Place, Written
from lib_merge.loaders.hosts import PEFT
from lib_merge.loaders.spelling import path_of
from lib_merge.ranks.policy import SavedModule

DTYPE_NAMES = {"fp16": "F16", "bf16": "BF16", "float": "F32"}
Entry = tuple[str, str, tuple[int, ...]]


def room_for(tree: Tree, modules: Mapping[str, SavedModule], vectors: Mapping[str, Mapping[str, int]]) -> int:
    """Return the length of the header, at most; but for the output's name, and where `modules` are exact, it
    is that.

    Args:
        tree: the merge.
        modules: what will be saved of each module.
        vectors: module -> role -> numbers of its biases and norm weights.
    """
    node = tree.root
    dtype = DTYPE_NAMES[node.recipe.precision]
    leaves = [(leaf.source, leaf.file.metadata) for leaf in node.leaves()]
    ranks = [module.rank for module in modules.values() if module.rank]
    table = metadata.build(node.stamped(blank=True), node.family, "x" * MAX_NAME, leaves, [*ranks, 0])
    places, _ = embeddings(tree.files)
    entries: list[Entry] = [
        (key, dtype, places[key][0].file.tensors[places[key][1]].shape) for key in sorted(places)
    ]
    for target in written(node):
        if target.name in modules:
            own = vectors.get(target.name, {}) if modules[target.name].vectors else {}
            entries.extend(_entries(tree.naming, target, modules[target.name], own, dtype))
    return header_room(entries, len(header_bytes({}, metadata.unsealed(table), 0)))


def _entries(
    naming: Naming, target: Target, module: SavedModule, vectors: Mapping[str, int], dtype: str
) -> Iterator[Entry]:
    """Yield the tensors of a module in the order in which they are written."""
    kernel = target.kernel
    inner = target.columns
    for size in kernel:
        inner //= size
    shapes: dict[str, tuple[int, ...]] = {role: (size,) for role, size in vectors.items()}
    if module.rank:
        if naming.alpha:
            shapes["alpha"] = ()
        shapes["lora_down.weight"] = (module.rank, inner, *kernel)
        shapes["lora_up.weight"] = (target.out, module.rank, *(1 for _ in kernel))
    if module.whole:
        shapes["diff"] = (target.out,) if target.one_axis else (target.out, inner, *kernel)
    for role in sorted(shapes):
        yield naming.key(target.name, role), dtype, shapes[role]


# ---------------------------------------------------------------- what is written


def written(node: Node) -> list[Target]:
    """Return the modules of the result and what loaders demand beside them, in the order they are written."""
    return sorted([*node.targets.values(), *fillers(node)], key=lambda target: target.name)


def fillers(node: Node) -> list[Target]:
    """Return the modules that a loader demands although the merge has nothing in them.

    They are shaped like their present neighbours, and saved as rank 1 of zeros.
    """
    present: dict[tuple[str, ...], Target] = {}
    for name, target in node.targets.items():
        members = _together(node, name)
        if members and target.columns and any(node.weights(target)):
            present.setdefault(members, target)
    return [
        replace(neighbour, name=name, kernel=(), stacked=1)
        for members, neighbour in present.items()
        for name in members
        if name not in node.targets
    ]


def wanted_together(node: Node) -> set[str]:
    """Return the modules that a loader looks for where their neighbour is: none of them may be left out."""
    return {name for name in node.targets if _together(node, name)}


def _together(node: Node, name: str) -> tuple[str, ...]:
    """Return the names of a module and of those that a loader wants with it; () for most."""
    for group in family_of(node.family).together:
        pieces = group.split(name)
        if pieces:
            return tuple(f"{pieces[0]}{part}" for part in group.parts)
    return ()


# ---------------------------------------------------------------- bundled textual inversions


def embeddings(files: Sequence[LoraFile]) -> tuple[dict[str, tuple[LoraFile, str]], list[str]]:
    """Return new key -> (file, its key) of every bundled embedding, and a note for each that was renamed."""
    places: dict[str, tuple[LoraFile, str]] = {}
    notes: list[str] = []
    for file in files:
        for name, keys in file.parsed.embeddings.items():
            for key in keys:
                new, note = _free_key(key, name, file.path.stem, places)
                places[new] = file, key
                if note and note not in notes:
                    notes.append(note)
    return places, notes


def _free_key(key: str, name: str, stem: str, taken: Container[str]) -> tuple[str, str]:
    """Return the key of a copied embedding and a note when it had to be renamed."""
    bare = name.strip("<>")
    new = key if key.startswith("bundle_emb.") else f"bundle_emb.{bare}.string_to_param.*"
    if new not in taken:
        return new, ""
    renamed = new.replace(f".{bare}.", f".{bare}-{stem}.", 1)
    return renamed, f"the embedding {name} is in two sources; the second is now called {bare}-{stem}"


# ---------------------------------------------------------------- who will load it

_FACTORS, _WHOLE = frozenset({"lora_up", "lora_down", "alpha"}), frozenset({"diff"})


def foreseen_names(tree: Tree) -> Contents:
    """Return what the merge will bring to a loader, from its names alone."""
    naming, modules = tree.naming, []
    layers = naming.family.layers
    for target in written(tree.root):
        stem = naming.key(target.name, "")[:-1]
        spot = (
            None
            if layers is None or encoder_of(target.name)
            else layers.find(path_of(target.name), naming.size)
        )
        place = None if spot is None else Place(spot.module.replace(".", "_"), spot.rows)
        roles = _FACTORS if target.columns and not target.one_axis else _WHOLE
        roles = roles if naming.alpha else roles | {PEFT}
        modules.append(Written(target.name, stem, roles, place))
    return Contents(naming.family, naming.size, tuple(modules))
