"""Which hosts load a file, module by module, and what of ΔW the others would lose."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lib_merge.adapters import LoraFile
from lib_merge.families import Family, family_of
from lib_merge.families.layers import Piece, Size, Spot
from lib_merge.loaders.encoders import ENCODERS
from lib_merge.loaders.hosts import HOSTS, PEFT
from lib_merge.loaders.record import Encoder, Front, Host, How, Loads, Place
from lib_merge.loaders.spelling import with_dots

_NUMBER, _PLACE = re.compile(r"\d+"), re.compile(r"\{\w\}")
# lost modules that are shown with their reasons
SHOWN = 12
UNKNOWN = "it knows no such name"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one host makes of one file.

    host, title  its name as an option, and as people call it
    loaded       modules that it loads
    total        modules of the file
    lost         module -> why it is not loaded
    share        Σ‖ΔW‖² of these ÷ Σ‖ΔW‖² of all; None where sizes are not known
    how          the table of this host and family came to be
    """

    host: str
    title: str
    loaded: int
    total: int
    lost: Mapping[str, str] = field(default_factory=dict)
    share: float | None = None
    how: How = How.RUN

    @property
    def whole(self) -> bool:
        """True where nothing is lost."""
        return not self.lost

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON-ready objects; of the lost modules the first few with their reasons."""
        return {
            "title": self.title,
            "loaded": self.loaded,
            "total": self.total,
            "share_lost": self.share,
            "lost": dict(list(self.lost.items())[:SHOWN]),
            "how": self.how.value,
        }


class Written(NamedTuple):
    """A module as it stands in a file.

    name   canonical
    stem   its name in the file, front and all
    roles  of its tensors
    place  where it belongs; None for a text encoder's
    """

    name: str
    stem: str
    roles: frozenset[str]
    place: Place | None


class Contents(NamedTuple):
    """What a file brings to a loader.

    family   the base family
    size     the model of the family that the file was trained on; None where no table of it is there
    modules  those among them that cannot be merged, too
    """

    family: Family
    size: Size | None
    modules: tuple[Written, ...]


def written_in(file: LoraFile) -> Contents:
    """Return what a file, settled for its family, brings to a loader."""
    family, size = family_of(file.family or ""), file.model
    modules = []
    for raw in file.parsed.modules:
        name = family.place(raw.component, raw.path, raw.spelt, size).name
        spot = family.layers.find(raw.path, size) if family.layers and raw.component == "unet" else None
        place = Place(spot.module.replace(".", "_"), spot.rows) if spot is not None else None
        peft = {PEFT} if any(".lora_A" in key for key in raw.roles.values()) else set()
        modules.append(Written(name, raw.spelt, frozenset(raw.roles) | peft, place))
    return Contents(family, size, tuple(modules))


def verdicts(contents: Contents, sizes: Mapping[str, float] | None = None) -> list[Verdict]:
    """Return what every host that has the family makes of a file; none for a family without a table.

    Args:
        contents: of the file.
        sizes: canonical module name -> ‖ΔW‖_F.
    """
    return [
        verdict(host, contents, sizes) for host in HOSTS.values() if contents.family.name in host.families
    ]


def verdict(host: Host, contents: Contents, sizes: Mapping[str, float] | None = None) -> Verdict:
    """Return what one host makes of a file; see `verdicts`."""
    loads, modules = host.families[contents.family.name], contents.modules
    names = {module.name for module in modules}
    reasons = ((module.name, _reason(host, contents, module, names)) for module in modules)
    lost = {name: reason for name, reason in reasons if reason}
    fatal = next((module for module in modules if host.strict and _unfit(module)), None)
    if fatal is not None:
        refused = f"it loses the whole file over {fatal.name}, of which it can make nothing"
        lost = {name: lost.get(name, refused) for name in sorted(names)}
    if len(lost) > host.most_unknown * len(modules):
        refused = f"it refuses files of which more than {host.most_unknown:.0%} is unknown to it"
        lost = {name: lost.get(name, refused) for name in sorted(names)}
    return Verdict(
        host=host.name,
        title=host.title,
        loaded=len(modules) - len(lost),
        total=len(modules),
        lost=lost,
        share=_share(lost, sizes),
        how=loads.how,
    )


def _unfit(module: Written) -> bool:
    """Tell whether a module has no tensors that a strict host makes a network of."""
    roles = set(module.roles)
    return PEFT in roles or not roles - {"alpha", "diff_b"} or ("w_norm" in roles) != ("b_norm" in roles)


def _reason(host: Host, contents: Contents, module: Written, names: Collection[str]) -> str:
    """Return why a host does not load a module as it is meant, or ""."""
    if not module.roles <= host.roles:
        return f"it reads no {min(module.roles - host.roles)}"
    place = _place_in(host.name, contents.family.name, contents.size, module.stem)
    if place is None:
        return UNKNOWN
    if module.place is not None and place != module.place:
        return f"it takes {module.stem} for {place.weight}"
    together = contents.family.set_of(module.name) if host.all_or_none else None
    if together is not None and any(together[0] + part not in names for part in together[2]):
        return f"it wants all of {', '.join(part.strip('_') for part in together[2])}"
    return ""


@functools.lru_cache(maxsize=1 << 15)
def _place_in(host: str, family: str, size: Size | None, stem: str) -> Place | None:
    return where(HOSTS[host].families[family], family_of(family), stem, size)


def lost_on_the_way(host: Host, merged: Contents, sources: Sequence[Contents]) -> list[str]:
    """Return the modules of a merge that a host does not load although it loads them from a source.

    Args:
        host: that has the family.
        merged: what the merge brings.
        sources: what each source brings alone.
    """
    loaded: set[str] = set()
    for contents in sources:
        unknown = verdict(host, contents).lost
        loaded |= {m.place.weight for m in contents.modules if m.place is not None and m.name not in unknown}
    lost = verdict(host, merged).lost
    return [
        module.name
        for module in merged.modules
        if module.name in lost and module.place is not None and module.place.weight in loaded
    ]


def where(loads: Loads, family: Family, stem: str, size: Size | None = None) -> Place | None:
    """Return where a loader puts a module of a name, or None where it knows none such.

    Args:
        loads: what the host loads of the family.
        family: the base family.
        stem: the module's name as the file has it, front and all.
        size: the model of the family whose sizes count.
    """
    for front in loads.encoder_fronts if stem.startswith(loads.encoder_fronts) else ():
        path = _path(stem, front)
        for name in loads.encoders[front] if path is not None else ():
            if path is not None and _in_encoder(
                ENCODERS[name], path, stem[len(front) :], dotted=not front.endswith("_")
            ):
                return None if _without(loads, path) else Place(f"{name}.{path}")
    for fronts, own in ((loads.own, True), (loads.other, False)):
        for entry in fronts:
            front, only = entry if isinstance(entry, Front) else (entry, None)
            path = _path(stem, front)
            if path is None or _without(loads, path) or (only is not None and not only.match(path)):
                continue
            spot = family.layers.find(path, size) if family.layers is not None else None
            if spot is None or not _there(loads, family, spot, path, size, own=own):
                continue
            if front.endswith("_") or _dotted(family, stem[len(front) :]):
                return Place(spot.module.replace(".", "_"), spot.rows)
    return None


def _in_encoder(encoder: Encoder, path: str, name: str, *, dotted: bool) -> bool:
    """Tell whether a text encoder has a module; with dots its path has a head before it."""
    if not dotted:
        return encoder.has(path)
    known = path.startswith(encoder.head) and encoder.has(path[len(encoder.head) :])
    return known and name == with_dots(path)


def _there(loads: Loads, family: Family, spot: Spot, path: str, size: Size | None, *, own: bool) -> bool:
    """Tell whether a path is the model's own name of a module that it has, or else diffusers' name of one."""
    if family.layers is None or spot.module not in (size or family.layers.sizes[0]).modules:
        return False
    if spot.module.replace(".", "_") != path:
        return not own
    return own or (loads.mixed and _NUMBER.sub("#", spot.module) not in _aliased(family))


def _dotted(family: Family, name: str) -> bool:
    """Tell whether a name has its dots where the model (or diffusers) has them."""
    known = _dots_of(family)
    forms = (name, _NUMBER.sub("#", name), _NUMBER.sub("#", f"{name}.0"))
    if family.layers is not None and not family.layers.aliases:
        return name in known or name == with_dots(name.replace(".", "_"))
    return not known.isdisjoint(forms)


@functools.lru_cache(maxsize=64)
def _aliased(family: Family) -> frozenset[str]:
    """Return the forms of the modules that diffusers calls otherwise, # for a number."""
    if family.layers is None:
        return frozenset()
    wholes = (means.whole if isinstance(means, Piece) else means for means in family.layers.aliases.values())
    return frozenset(_NUMBER.sub("#", _PLACE.sub("#", whole)) for whole in wholes)


@functools.lru_cache(maxsize=64)
def _dots_of(family: Family) -> frozenset[str]:
    """Return the dotted paths of a family's models, and the forms of their other names, # for a number."""
    if family.layers is None:
        return frozenset()
    others = (_NUMBER.sub("#", _PLACE.sub("#", name)) for name in family.layers.aliases)
    return frozenset(others).union(*(size.modules for size in family.layers.sizes))


def _path(stem: str, front: str) -> str | None:
    """Return a module's path with underscores, or None where the name does not begin so."""
    if not stem.startswith(front):
        return None
    rest = stem[len(front) :]
    if front.endswith("_"):
        return None if "." in rest else rest
    return rest.replace(".", "_")


def _without(loads: Loads, path: str) -> bool:
    return loads.without is not None and loads.without.search(path) is not None


def _share(lost: Mapping[str, str], sizes: Mapping[str, float] | None) -> float | None:
    if sizes is None:
        return None
    whole = sum(size**2 for size in sizes.values())
    return sum(sizes.get(name, 0.0) ** 2 for name in lost) / whole if whole else 0.0


def why(checked: Sequence[Verdict]) -> list[str]:
    """Return a sentence for each host that would lose something: what, how much and for which reason."""
    sentences = []
    for one in checked:
        if one.lost:
            name, reason = next(iter(one.lost.items()))
            share = "" if one.share is None else f", {one.share:.0%} of ΔW"
            sentences.append(
                f"{one.title} does not load {len(one.lost)} of {one.total} modules{share}: {name}: {reason}"
            )
    return sentences


def sentence(checked: Sequence[Verdict]) -> str:
    """Return the verdicts in one line: A1111 ✓ · Forge ✓ · Neo loses 43 %."""
    return " · ".join(f"{one.title} {'✓' if one.whole else _loses(one)}" for one in checked)


def _loses(one: Verdict) -> str:
    if one.share is None:
        return f"loads {one.loaded} of {one.total}"
    return f"loses {one.share:.0%}" if one.share >= 0.005 else "loses less than 1 %"
