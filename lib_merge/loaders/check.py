"""Which hosts load a file, module by module, and what of ΔW the others would lose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lib_merge.adapters import LoraFile
from lib_merge.adapters.keys import RawModule, key_ends
from lib_merge.families import Family, family_of
from lib_merge.loaders.encoders import ENCODERS
from lib_merge.loaders.hosts import HOSTS
from lib_merge.loaders.record import Host, How, Loads, Place

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
    roles: Collection[str]
    place: Place | None


def written_in(file: LoraFile) -> list[Written]:
    """Return the modules of a file, those among them that cannot be merged."""
    family = family_of(file.family or "")
    modules = []
    for raw in file.parsed.modules:
        placed = family.place(raw.component, raw.path)
        place = Place(_bare(placed.fused or placed.name), placed.rows) if raw.component == "unet" else None
        modules.append(Written(placed.name, stem_of(raw), raw.roles.keys(), place))
    return modules


def verdicts(
    family: Family, modules: Sequence[Written], sizes: Mapping[str, float] | None = None
) -> list[Verdict]:
    """Return what every host that has the family makes of a file; none for a family without a table.

    Args:
        family: the base family.
        modules: of the file.
        sizes: canonical module name -> ‖ΔW‖_F.
    """
    return [verdict(host, family, modules, sizes) for host in HOSTS.values() if family.name in host.families]


def verdict(
    host: Host, family: Family, modules: Sequence[Written], sizes: Mapping[str, float] | None = None
) -> Verdict:
    """Return what one host makes of a file; see `verdicts`."""
    loads = host.families[family.name]
    names = {module.name for module in modules}
    reasons = ((module.name, _reason(host, loads, family, module, names)) for module in modules)
    lost = {name: reason for name, reason in reasons if reason}
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


def _reason(host: Host, loads: Loads, family: Family, module: Written, names: Collection[str]) -> str:
    """Return why a host does not load a module as it is meant, or ""."""
    strangers = sorted(set(module.roles) - host.roles)
    if strangers:
        return f"it reads no {strangers[0]}"
    place = where(loads, family, module.stem)
    if place is None:
        return UNKNOWN
    if module.place is not None and place != module.place:
        return f"it takes {module.stem} for {place.weight}"
    together = family.set_of(module.name) if host.all_or_none else None
    if together is not None and any(together[0] + part not in names for part in together[2]):
        return f"it wants all of {', '.join(part.strip('_') for part in together[2])}"
    return ""


def where(loads: Loads, family: Family, stem: str) -> Place | None:
    """Return where a loader puts a module of a name, or None where it knows none such.

    Args:
        loads: what the host loads of the family.
        family: the base family.
        stem: the module's name as the file has it, front and all.
    """
    for front in sorted(loads.encoders, key=len, reverse=True):
        path = _path(stem, front)
        if path is not None:
            encoder = loads.encoders[front]
            known = ENCODERS[encoder].has(path) and not _without(loads, path)
            return Place(f"{encoder}.{path}") if known else None
    for front in loads.own:
        path = _path(stem, front)
        if path is not None and family.has(path) and not _without(loads, path):
            return Place(path)
    for front in loads.other:
        path = _path(stem, front)
        if path is not None and not _without(loads, path):
            placed = family.place("unet", path)
            weight = _bare(placed.fused or placed.name)
            if weight != path and family.has(weight):
                return Place(weight, placed.rows)
    return None


def _path(stem: str, front: str) -> str | None:
    """Return a module's path with underscores, or None where the name does not begin so."""
    if not stem.startswith(front):
        return None
    rest = stem[len(front) :]
    if front.endswith("_"):
        return None if "." in rest else rest
    return rest.replace(".", "_")


def _bare(name: str) -> str:
    return name.removeprefix("lora_unet_")


def _without(loads: Loads, path: str) -> bool:
    return loads.without is not None and loads.without.search(path) is not None


def stem_of(raw: RawModule) -> str:
    """Return a module's name as its file has it: a key without its end."""
    ends = key_ends().means
    for key in raw.roles.values():
        at = len(key)
        stems = []
        for _ in range(key_ends().parts):
            at = key.rfind(".", 0, at)
            if at < 0:
                break
            if key[at + 1 :] in ends:
                stems.append(key[:at])
        if stems:
            return stems[-1]
    return next(iter(raw.roles.values()))


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
