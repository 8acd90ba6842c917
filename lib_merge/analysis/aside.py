"""Speed LoRAs in a merge that would thin or dilute them: what to say, and the merge with them outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lib_merge.analysis.model import Advice
from lib_merge.analysis.recognition import Mark, held
from lib_merge.recipe import Recipe
from lib_merge.recipe_edits import Place, handles, source_at

THINS = "leaves out numbers that {} to work in few steps"
DILUTES = "weighs it against the others, and only at its own strength it works in few steps"


def outside(recipe: Recipe, marks: Sequence[Sequence[Mark]]) -> Iterator[Advice]:
    """Advise to add speed LoRAs on top of the merge of the others, where its method would spoil them.

    Args:
        recipe: the merge.
        marks: what each file is recognised as, in the order of `Recipe.leaves`.
    """
    files = [place for place in handles(recipe).values() if source_at(recipe, place).recipe is None]
    found: dict[Place, list[tuple[Place, Mark]]] = {}
    for place, own in zip(files, marks):
        mark = held(own)
        spoiled = None if mark is None else _spoiled_in(recipe, place)
        if mark is not None and spoiled is not None:
            found.setdefault(spoiled, []).append((place, mark))
    for merge, members in found.items():
        yield _advice(recipe, merge, members)


def _spoiled_in(recipe: Recipe, place: Place) -> Place | None:
    """Return the place of the outermost merge that thins or dilutes a file, () for the recipe itself."""
    for depth in range(len(place)):
        merge = _merge_at(recipe, place[:depth])
        method = merge.declared()
        if (method.thins or method.dilutes) and len(merge.sources) > 1:
            return place[:depth]
    return None


def _merge_at(recipe: Recipe, place: Place) -> Recipe:
    inner = source_at(recipe, place).recipe if place else recipe
    assert inner is not None
    return inner


def _advice(recipe: Recipe, merge: Place, members: Sequence[tuple[Place, Mark]]) -> Advice:
    names = {place: name for name, place in handles(recipe).items()}
    letters = [names[place] for place, _ in members]
    inner = _merge_at(recipe, merge)
    method = inner.declared()
    named = " and ".join(f"{names[place]} ({source_at(recipe, place).label})" for place, _ in members)
    said = _said([mark for _, mark in members])
    one = len(members) == 1
    harm = THINS.format("it needs" if one else "they need") if method.thins else DILUTES
    return Advice(
        "outside",
        f"Add {' and '.join(letters)} outside {method.title}",
        f"{named} {said}: {method.title} {harm}; "
        f"{'it' if one else 'they'} can be added on top of the merge of the others instead.",
        {"sources": letters},
        {"aside": letters} if _possible(recipe, merge, [place for place, _ in members]) else {},
    )


def _said(marks: Sequence[Mark]) -> str:
    """Say what the marks are, and why: `is a speed LoRA (the file's name and its modules)`."""
    one, sure = len(marks) == 1, all(mark.sure for mark in marks)
    why = "; ".join(dict.fromkeys(" and ".join(mark.evidence) for mark in marks))
    be = ("is" if one else "are") if sure else "may be"
    return f"{be} {'a speed LoRA' if one else 'speed LoRAs'} ({why}{'' if sure else ' only'})"


def _possible(recipe: Recipe, merge: Place, places: Sequence[Place]) -> bool:
    """Tell whether `with_aside` can do it, in a way that the tab can show: groups in no other group."""
    direct = all(len(place) == len(merge) + 1 for place in places)
    if not direct or len(places) == len(_merge_at(recipe, merge).sources):
        return False
    if merge:
        return recipe.declared().stacks
    return recipe.flat or len(recipe.sources) == len(places) + 1
