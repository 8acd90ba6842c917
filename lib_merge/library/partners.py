"""The partner files of Wan 2.2: what was merged of the high-noise LoRAs, merged of the low-noise ones.

Two files are partners where their names differ in the noise level alone: `ink_high_noise` and
`ink_low_noise`, `ink_HN` and `ink_LN`, `ink-H-e8` and `ink-L-e8`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib_merge.analysis.names import NoiseName, for_level, noise_names
from lib_merge.errors import RecipeError
from lib_merge.library.library import SUFFIXES, walk
from lib_merge.recipe import Recipe, Source


@dataclass(frozen=True, slots=True)
class Partners:
    """The same recipe for the partner files.

    recipe  with the partners' paths
    level   of the partners: "high" or "low"
    both    labels of sources that name no noise level and are in both recipes
    names   label of a source -> its partner's
    """

    recipe: Recipe
    level: str
    both: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What to know of it, as sentences."""
        if not self.both:
            return []
        name = "names" if len(self.both) == 1 else "name"
        return [f"{' and '.join(self.both)} {name} no noise level: the same file is merged for both levels"]


def partners_of(recipe: Recipe, folders: Sequence[Path] = ()) -> Partners:
    """Return the recipe for the other noise level.

    Args:
        recipe: with paths.
        folders: where partners are looked for, beside each file's own folder.
    Raises:
        RecipeError: a partner is missing, the sources are of both levels, or none names a level.
    """
    found = {source.path: _partner(source, folders) for source in recipe.leaves()}
    levels = {level for level, _ in found.values() if level}
    if not levels:
        message = (
            "no source names a noise level (high_noise, LowNoise, HN, LN …), so there are no partner files."
        )
        raise RecipeError(message)
    if len(levels) > 1:
        message = "some sources are for high noise and some for low noise: merge those of one level first."
        raise RecipeError(message)
    missing = [(source.label, level) for source in recipe.leaves() if (level := found[source.path][0])
               and found[source.path][1] is None]  # fmt: skip
    if missing:
        named = " and ".join(dict.fromkeys(label for label, _ in missing))
        message = f"the partner of {named} for {_other(missing[0][1])} noise is not in the folders searched."
        raise RecipeError(message)
    both = dict.fromkeys(source.label for source in recipe.leaves() if not found[source.path][0])
    paths = {path: partner for path, (_, partner) in found.items() if partner is not None}
    names = {source.label: paths[source.path].stem for source in recipe.leaves() if source.path in paths}
    return Partners(_swapped(recipe, paths), _other(levels.pop()), tuple(both), names)


def partner_stem(stem: str, partners: Partners) -> str:
    """Return what the merge of the partners is called.

    Names of sources in it become those of their partners, words for the noise level those for the other one;
    a name without either has the level appended.

    Args:
        stem: of the merge that is there.
        partners: of its sources.
    """
    name = stem
    for label in sorted(partners.names, key=len, reverse=True):
        name = name.replace(label, partners.names[label])
    name = for_level(name, partners.level)
    return name if name != stem else f"{stem}_{partners.level}_noise"


def noise_level(recipe: Recipe, folders: Sequence[Path] = ()) -> str:
    """Return the noise level of a recipe's sources: that of their names, or of partners that are there; ""
    for none, or for both.

    Args:
        recipe: with paths.
        folders: as in `partners_of`.
    """
    levels = {level for source in recipe.leaves() if (level := _partner(source, folders)[0])}
    return levels.pop() if len(levels) == 1 else ""


def _partner(source: Source, folders: Sequence[Path]) -> tuple[str, Path | None]:
    """Return (noise level, partner) of a source: ("", None) where its name says no level."""
    assert source.path is not None
    readings = list(noise_names(source.path.stem))
    for reading in readings:
        partner = _file(reading, source.path, folders)
        if partner is not None:
            return reading.level, partner
    explicit = next((reading for reading in readings if reading.explicit), None)
    return ("", None) if explicit is None else (explicit.level, None)


def _file(reading: NoiseName, path: Path, folders: Sequence[Path]) -> Path | None:
    """Return the file of a partner's name: beside its own first, then anywhere in the folders."""
    wanted = reading.partner.casefold()
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    anywhere = (other for folder in folders for other in walk(folder))
    for place in (beside, anywhere):
        for other in place:
            fits = other.stem.casefold() == wanted and other.suffix.lower() in SUFFIXES
            if fits and other.is_file() and other != path:
                return other
    return None


def _swapped(recipe: Recipe, paths: dict[Path | None, Path]) -> Recipe:
    sources = []
    for source in recipe.sources:
        if source.recipe is not None:
            sources.append(replace(source, recipe=_swapped(source.recipe, paths)))
        elif source.path in paths:
            path = paths[source.path]
            sources.append(replace(source, path=path, name=path.name, size=path.stat().st_size, sha256=""))
        else:
            sources.append(source)
    return replace(recipe, sources=tuple(sources))


def _other(level: str) -> str:
    return "low" if level == "high" else "high"
