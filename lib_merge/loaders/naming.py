"""How a merge names its modules: as every host loads them, as one host does, or in another spelling."""

from __future__ import annotations

from dataclasses import dataclass

from lib_merge.families import Family, encoder_of
from lib_merge.families.layers import Size
from lib_merge.loaders.check import where
from lib_merge.loaders.hosts import HOSTS
from lib_merge.loaders.record import Host
from lib_merge.loaders.spelling import Layout, Spelling, path_of, stem_in

SPELLINGS = tuple(spelling.value for spelling in Spelling)
# what a recipe's `names` may be, beside ""
NAMINGS = tuple(dict.fromkeys((*SPELLINGS, *HOSTS)))


def namings() -> list[list[str]]:
    """Return [name, in words] of what a recipe's `names` may be, "" first."""
    spelt = {"kohya": "kohya", "comfyui": "ComfyUI", "diffusers": "diffusers", "onetrainer": "OneTrainer"}
    hosts = {name: host.title for name, host in HOSTS.items() if name not in spelt}
    return [["", "every host"], *([*item] for item in {**spelt, **hosts}.items())]


@dataclass(frozen=True)
class Naming:
    """The names of one merge.

    family    of the merge
    size      the model of the family whose sizes count
    spelling  asked for; None = the names that the family's hosts load
    host      that must know them
    """

    family: Family
    size: Size | None = None
    spelling: Spelling | None = None
    host: Host | None = None

    @classmethod
    def of(cls, names: str, family: Family, size: Size | None) -> Naming:
        """Return the names that a recipe asks for; "" = those of the family."""
        if names in SPELLINGS:
            return cls(family, size, Spelling(names))
        return cls(family, size, None, HOSTS.get(names))

    @property
    def alpha(self) -> bool:
        """False where the spelling has no alpha: it is in the factors."""
        return self.spelling is None or bool(self.spelling.ends.get("alpha", "alpha"))

    def layout(self, fused: str) -> Layout:
        """Return how a fused module is written.

        Args:
            fused: its canonical name.
        """
        if self.spelling is not None:
            return Layout.FUSED if self.spelling.fused else Layout.SPLIT
        loads = self.host.families.get(self.family.name) if self.host is not None else None
        if loads is None:
            return Layout.KEPT
        pieces = self.family.split(fused, self.size) or ()
        known = all(where(loads, self.family, name, self.size) is not None for name, _ in pieces)
        return Layout.KEPT if known else Layout.FUSED

    def swaps(self, name: str) -> bool:
        """Tell whether the spelling has the two halves of a module's rows in the other order."""
        layers = self.family.layers
        if self.spelling is None or self.spelling.fused or layers is None or encoder_of(name):
            return False
        stem = stem_in(self.spelling, self.family, self.size, name)
        spot = None if stem is None else layers.find(path_of(stem), self.size)
        return spot is not None and spot.swap

    def key(self, name: str, end: str) -> str:
        """Return the key of a tensor.

        Args:
            name: canonical module name; one that the spelling has no word for keeps it.
            end: of the key, as kohya has it.
        """
        if self.spelling is None:
            return f"{name}.{end}"
        stem = stem_in(self.spelling, self.family, self.size, name) or name
        return f"{stem}.{self.spelling.ends.get(end, end)}"
