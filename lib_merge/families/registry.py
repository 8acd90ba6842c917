"""The families that are known: by name, told from a file's modules, and with their blocks.

How a family is told: from key names and shapes, for metadata is free text and often wrong. The families that
have every module of the file in its size fit it; of several, the one whose blocks the file covers. What has
no table, or only text encoders, is told by facts: each one shown narrows the set of families that could have
it. A text encoder of CLIP-L's width alone fits several and is left open.

Blocks: the handles people use for parts of a model. SD1/SD2 have BASE (text encoder), IN00-IN11, M00,
OUT00-OUT11; SDXL stops at 08; Flux has CLIP, T5, IN, D00-D18, S00-S37, OUT. What fits no block (conv_out,
time embeddings) is OTHER, which lists do not touch. Families without a table get their blocks from the first
number in a module's path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lib_merge.errors import RecipeError
from lib_merge.families.placement import ModuleFacts
from lib_merge.families.record import Fact, Family

OTHER = "other"
# what is taken where nobody says a family and nothing tells it
USUAL = "SD1"
FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family.

    Raises:
        ValueError: its name is taken.
    """
    if family.name in FAMILIES:
        message = f"there are two records of the family {family.name}"
        raise ValueError(message)
    records = sorted([*FAMILIES.values(), family], key=lambda record: record.order)
    FAMILIES.clear()
    FAMILIES.update((record.name, record) for record in records)


def unregister(name: str) -> None:
    """Take a family out again."""
    del FAMILIES[name]


def family_of(name: str) -> Family:
    """Return a family by name; of a name that is not known, what holds for every other model."""
    return FAMILIES.get(name) or _nameless(name)


@functools.lru_cache(maxsize=64)
def _nameless(name: str) -> Family:
    return replace(FAMILIES[OTHER], name=name, base_version="", architecture="")


def with_blocks() -> Iterator[Family]:
    """Yield the families that have a table of blocks."""
    return (family for family in FAMILIES.values() if family.blocks)


def tables() -> list[Family]:
    """Return one family for every table of blocks that other tools have lists of: the first that has it."""
    first: dict[tuple[str, ...], Family] = {}
    for family in with_blocks():
        if family.lists:
            first.setdefault(family.blocks, family)
    return list(first.values())


# ---------------------------------------------------------------- how a family is told


@dataclass(frozen=True, slots=True)
class FamilyGuess:
    """The families that fit, and the fact that decided.

    candidates  those that are likely
    reason      for people
    possible    the same and those that give way to one of them: what is written may tell
    arguable    all that have its modules in their sizes: a person may say that it is one of these
    """

    candidates: tuple[str, ...]
    reason: str
    possible: tuple[str, ...] = ()
    arguable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in what is the same where nothing else was said."""
        object.__setattr__(self, "possible", self.possible or self.candidates)
        object.__setattr__(self, "arguable", self.arguable or self.possible)


def tell_family(modules: Iterable[ModuleFacts]) -> FamilyGuess:
    """Return the families that a file's modules fit."""
    return _tell(tuple(modules), tuple(FAMILIES.values()))


# the sources of one merge and its result are mostly alike
@functools.lru_cache(maxsize=8)
def _tell(modules: tuple[ModuleFacts, ...], _: tuple[Family, ...]) -> FamilyGuess:
    refusing = _shown(modules, lambda names: all(FAMILIES[name].refused for name in names))
    if refusing:
        return FamilyGuess(_sorted(refusing[0][1]), refusing[0][0].reason)
    fitting = _fitting(modules)
    # the tables know a denoiser better than any fact; its text encoders may still tell of several families
    text = [module for module in modules if not fitting or module.component != "unet"]
    shown = _shown(text)
    if not fitting and not shown:
        return FamilyGuess((OTHER,), "its module names are of no family known here")
    if fitting:
        arguable = _told_by_text(fitting, shown)
        possible = _covered(arguable, modules)
    else:
        arguable = possible = set.intersection(*(set(families) for _, families in shown))
    if not possible:
        return FamilyGuess((OTHER,), "its modules belong to different families")
    likely = possible - {name for name in possible if FAMILIES[name].gives_way_to in possible}
    if len(likely) > 1:
        components = {module.component for module in modules}
        likely -= {name for name in likely if not components.isdisjoint(FAMILIES[name].improbable)}
    return FamilyGuess(_sorted(likely), _reason(likely, modules), _sorted(possible), _sorted(arguable))


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    names = set(names)
    return tuple(name for name in FAMILIES if name in names)


def _reason(likely: set[str], modules: Sequence[ModuleFacts]) -> str:
    """Return the most telling fact that is true of all of them."""
    telling = [
        (len(families), fact.reason) for fact, families in _shown(modules, lambda names: likely <= names)
    ]
    return min(telling, key=lambda item: item[0])[1] if telling else "names and sizes of its modules"


MOST = 0.75  # of a file's modules: a family that has so many of them, and more than any other, is meant


def _fitting(modules: Sequence[ModuleFacts]) -> set[str]:
    """Return the families that have all modules of a denoiser in their size, else those that have most."""
    denoiser = [module for module in modules if module.component == "unet"]
    known = {family.name: family.layers for family in FAMILIES.values() if family.layers}
    if not denoiser:
        return set()
    whole = {name for name, layers in known.items() if layers.fitting(denoiser)}
    if whole:
        return whole
    shares = {name: layers.share(denoiser) for name, layers in known.items()}
    most = max(shares.values(), default=0.0)
    return {name for name, share in shares.items() if share == most} if most >= MOST else set()


def _told_by_text(fitting: set[str], shown: Sequence[tuple[Fact, frozenset[str]]]) -> set[str]:
    """Return the families of these whose text encoders are those of the file, where one has them."""
    return fitting.intersection(*(families for _, families in shown)) or fitting


def _covered(names: set[str], modules: Sequence[ModuleFacts]) -> set[str]:
    """Return the families of these whose every block the file is in: it is not by chance; else all."""
    covered = set()
    for name in names if len(names) > 1 else ():
        layers = FAMILIES[name].layers
        if layers and any(layers.covered(modules, size) for size in layers.fitting(modules)):
            covered.add(name)
    return covered or names


def _shown(
    modules: Iterable[ModuleFacts], of: Callable[[frozenset[str]], bool] = bool
) -> list[tuple[Fact, frozenset[str]]]:
    """Return every fact that some module shows, in the order of first appearance, and who can have it.

    Args:
        modules: of a file.
        of: whose facts are asked for; each module is asked for every one, which takes its time.
    """
    hidden = [(fact, names) for fact, names in _facts(tuple(FAMILIES.values())) if of(names)]
    shown = []
    for module in modules if hidden else ():
        new = [item for item in hidden if item[0].shown_by(module)]
        if new:
            shown.extend(new)
            hidden = [item for item in hidden if item not in new]
    return shown


@functools.lru_cache(maxsize=8)
def _facts(families: tuple[Family, ...]) -> tuple[tuple[Fact, frozenset[str]], ...]:
    """Return every fact with the families that can have it; what names say comes before what sizes say."""
    owners: dict[Fact, set[str]] = {}
    for family in families:
        for fact in family.facts:
            owners.setdefault(fact, set()).add(family.name)
    return tuple((fact, frozenset(owners[fact])) for fact in sorted(owners, key=lambda fact: fact.of_size))


# what a header says of the base model, the plainest first
_SAYS = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")


def family_in_metadata(metadata: Mapping[str, str]) -> str | None:
    """Return the family that a header says a LoRA is for, or None."""
    for said in filter(None, map(metadata.get, _SAYS)):
        for family in FAMILIES.values():
            if said in (family.base_version, family.architecture):
                return family.name
        name = family_in_name(said)
        if name is not None:
            return name
    return None


def family_in_name(base: str) -> str | None:
    """Return the family that the name of a base model in a PEFT configuration tells, where it is plain."""
    for family in sorted(FAMILIES.values(), key=lambda family: family.config_names.order):
        name = family.config_names.read(base)
        if name is not None:
            return name
    return None


def line_in_name(base: str) -> str | None:
    """Return the line of models (Pony, Illustrious, …) that the name of a base model tells, or None."""
    for family in sorted(FAMILIES.values(), key=lambda family: family.lines.order):
        line = family.lines.read(base)
        if line is not None:
            return line
    return None


# ---------------------------------------------------------------- blocks


def block_of(name: str, family: str) -> str:
    """Return the block of a module.

    Args:
        name: canonical module name (`lora_unet_…`, `lora_te1_…`).
        family: the base family.
    """
    return _block(name, family_of(family))


@functools.lru_cache(maxsize=1 << 14)
def _block(name: str, family: Family) -> str:
    return family.block(name, encoder_of(name))


def encoder_of(name: str) -> int:
    """Return 0 for a module of the UNet or transformer, else the number of its text encoder."""
    if name.startswith("text_encoders."):
        return 1
    if not name.startswith("lora_te"):
        return 0
    digit = name[len("lora_te") : len("lora_te") + 1]
    return int(digit) if digit.isdigit() and digit != "0" else 1


def blocks_present(names: Iterable[str], family: str) -> tuple[str, ...]:
    """Return the blocks that the modules lie in, in the table's order (or sorted, OTHER last)."""
    present = {block_of(name, family) for name in names}
    table = family_of(family).blocks
    if table:
        return tuple(block for block in table if block in present)
    return tuple(sorted(present, key=lambda block: (block == "OTHER", block != "BASE", block)))


def block_order(family: str) -> dict[str, int]:
    """Return the place of every block in the family's table; empty where there is none."""
    return {block: place for place, block in enumerate(family_of(family).blocks)}


def in_order(blocks: Iterable[str], family: str) -> list[str]:
    """Return blocks, each once, as the family orders them; those it does not know come last, by name."""
    order = block_order(family)
    return sorted(dict.fromkeys(blocks), key=lambda block: (order.get(block, len(order)), block))


def same_blocks(one: str, other: str) -> bool:
    """Tell whether two families have the same blocks, so that what is made for one serves the other."""
    return one == other or bool(family_of(one).blocks and family_of(one).blocks == family_of(other).blocks)


def expand_block_list(values: Sequence[float], family: str) -> tuple[dict[str, float], list[str]]:
    """Turn a list of one of the family's lengths into {block: weight}.

    Blocks of the family that the list has no place for get 0, as every tool that reads such lists does;
    OTHER gets 1.

    Returns:
        ({block: weight}, the blocks without a place).
    Raises:
        RecipeError: a length the family has no list for.
    """
    record = family_of(family)
    listed = record.list_of(len(values))
    if listed is None:
        lengths = " or ".join(str(len(listed)) for listed in record.lists)
        takes = lengths or "no lists; name the blocks instead"
        message = f"a list of {len(values)} block weights does not fit {family}, which takes {takes}."
        raise RecipeError(message)
    given = dict(zip(listed.blocks, values))
    without = [block for block in record.blocks if block not in given and block != "OTHER"]
    return {**{block: float(given.get(block, 0.0)) for block in record.blocks}, "OTHER": 1.0}, without


def list_lengths() -> list[int]:
    """Return every length that some family's lists have, the shortest first."""
    return sorted({len(listed) for family in FAMILIES.values() for listed in family.lists})


def family_with_list(count: int) -> str | None:
    """Return the family that takes a list of `count` weights, where only one table of blocks has one."""
    taking = families_with_list(count)
    return taking[0].name if len(taking) == 1 else None


def families_with_list(count: int) -> list[Family]:
    """Return the families that take a list of `count` weights, one for every table of blocks."""
    first: dict[tuple[str, ...], Family] = {}
    for family in FAMILIES.values():
        if family.list_of(count) is not None:
            first.setdefault(family.blocks, family)
    return list(first.values())
