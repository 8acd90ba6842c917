"""What is known of one base family, as data: how it is told, blocks, lists, hints, names, metadata, hosts.

One file of this folder holds one `FAMILY`; everything else loops over the records and names no family.
What a family says nothing of has the default that unknown families get, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from lib_merge.families.layers import Layers, Size
from lib_merge.families.placement import ModuleFacts, Pieces, Placement

# ---------------------------------------------------------------- how a family is told


@dataclass(frozen=True)
class Fact:
    """Something that a module can show and that only some families have.

    reason         for people: why a file was taken for a family
    path           searched in the module's path; None = any
    component      of the module; "text" = any text encoder
    rows, columns  of its weight; 0 = any
    """

    reason: str
    path: re.Pattern[str] | None = None
    component: str = "unet"
    rows: int = 0
    columns: int = 0

    @property
    def of_size(self) -> bool:
        """True for a fact that only sizes show."""
        return bool(self.rows or self.columns)

    def shown_by(self, module: ModuleFacts) -> bool:
        """Tell whether a module shows this."""
        if self.component == "text":
            if module.component == "unet":
                return False
        elif module.component != self.component:
            return False
        if (self.rows and module.rows != self.rows) or (self.columns and module.columns != self.columns):
            return False
        return self.path is None or self.path.search(module.path) is not None


@dataclass(frozen=True)
class NameRules:
    """What the name of a base model says, by patterns; the first that is found counts.

    order  the families whose names may hold each other's words are asked in this order
    rules  (pattern, what it says)
    """

    order: int
    rules: tuple[tuple[re.Pattern[str], str], ...]

    @classmethod
    def of(cls, order: int, *rules: tuple[str, str]) -> NameRules:
        """Compile patterns; case does not count."""
        return cls(order, tuple((re.compile(pattern, re.IGNORECASE), says) for pattern, says in rules))

    def read(self, name: str) -> str | None:
        """Return what a name says, or None."""
        return next((says for pattern, says in self.rules if pattern.search(name)), None)


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class BlockList:
    """A list of weights as people paste it: the block of each place.

    name            what people call it
    blocks          in the list's order; the family's other blocks get 0
    of_checkpoints  tools that merge checkpoints by block write it, too
    """

    name: str
    blocks: tuple[str, ...]
    of_checkpoints: bool = False

    def __len__(self) -> int:
        """Return how many weights the list has."""
        return len(self.blocks)


@dataclass(frozen=True)
class Counting:
    """How ComfyUI's Inspire Pack counts a family's blocks.

    prefix  what its presets for the family begin with; "" = the family is never named
    orders  what a LoRA has that is counted so -> (word of a spec -> its blocks in order; "" = a place without
            a block). "base" gets the first weight of a list, whatever blocks it has. The first order that has
            the numbers asked for is taken; lists are written in the last
    least   a list may be as short as this: its last weight is repeated; 0 = lists are whole
    """

    prefix: str
    orders: Mapping[str, Mapping[str, tuple[str, ...]]]
    least: int = 0

    @property
    def places(self) -> tuple[str, ...]:
        """The block of each place of a list after the first, which is for "base"."""
        order = list(self.orders.values())[-1]
        return tuple(block for word, blocks in order.items() if word != "base" for block in blocks)

    @property
    def base(self) -> tuple[str, ...]:
        """The blocks that the first weight is for."""
        return list(self.orders.values())[-1]["base"]

    def takes(self, count: int) -> bool:
        """Tell whether a list of `count` weights can be meant."""
        whole = 1 + len(self.places)
        return (self.least or whole) <= count <= whole


@dataclass(frozen=True)
class Hint:
    """What a block is known to carry: a starting point, not a law.

    source  who says so
    """

    says: str
    source: str


@dataclass(frozen=True)
class ShippedPreset:
    """Block weights that come with the program.

    hint    one sentence for the menu
    values  in the family's usual list; () where `rules` say it
    rules   block, or the letters of several -> weight
    rest    weight of what `rules` do not name
    """

    hint: str
    values: tuple[float, ...] = ()
    rules: Mapping[str, float] = field(default_factory=dict)
    rest: float = 1.0

    def weights(self, blocks: Iterable[str]) -> list[float] | dict[str, float]:
        """Return the list, or {block: weight} for every block given."""
        if self.values:
            return list(self.values)
        return {
            block: float(self.rules.get(block, self.rules.get(letters(block), self.rest))) for block in blocks
        }


EVEN: Mapping[str, ShippedPreset] = {
    "NONE": ShippedPreset("Every block off.", rules={"OTHER": 1.0}, rest=0.0),
    "ALL": ShippedPreset("Every block at full strength."),
    "ALL0.5": ShippedPreset("Every block at half strength.", rules={"OTHER": 1.0}, rest=0.5),
}
NO_TEXT_ENCODER: Mapping[str, ShippedPreset] = {
    "NO-TEXT-ENCODER": ShippedPreset(
        "Everything but the text encoders.", rules={"BASE": 0.0, "CLIP": 0.0, "CLIPG": 0.0, "T5": 0.0}
    ),
}
PRACTICE = "common practice among people who train and merge"
REST: Mapping[str, Hint] = {
    "BASE": Hint("text encoder: what words mean", PRACTICE),
    "OTHER": Hint("what belongs to no block: time embedding, last convolution", PRACTICE),
}
_FRONT = re.compile(
    r"^(?:lora_unet_+|lora_transformer_|lycoris_|diffusion_model\.|transformer\.|base_model\.model\.)"
)
_NUMBERED = re.compile(r"^([a-z_]*?)_?(\d+)(?:_|$)")
_BLOCK_WORDS = frozenset({"blocks", "transformer_blocks", "layers", "joint_blocks", "double_blocks"})


def letters(block: str) -> str:
    """Return a block id without its number: IN of IN04."""
    return block.rstrip("0123456789")


def numbered(prefix: str, *numbers: int) -> tuple[str, ...]:
    """Return block ids: IN04, IN05, …"""
    return tuple(f"{prefix}{number:02d}" for number in numbers)


def bare(name: str) -> str:
    """Return a denoiser's path with underscores from its canonical name."""
    return _FRONT.sub("", name).replace(".", "_")


def numbered_block(name: str, encoder: int) -> str:
    """Return the block of a module in a family without a table: the first number in its path."""
    if encoder:
        return text_block(name)
    match = _NUMBERED.match(bare(name))
    return f"B{int(match[2]):02d}" if match and match[1] in _BLOCK_WORDS else "OTHER"


def text_block(name: str) -> str:
    """Return the block of a text encoder's module where all encoders share one."""
    return "OTHER" if name.endswith("_text_projection") else "BASE"


# ---------------------------------------------------------------- names

# a text encoder that is a language model (Qwen3, Gemma, …): hosts have no name for it in common
LANGUAGE_MODEL = "lm"
# what a CLIP has outside its layers: no trainer writes it, and hosts know it by its whole name alone
_UNNAMED = re.compile(r"text_model_(?!encoder_layers_\d+_(self_attn|mlp)_)")


@dataclass(frozen=True)
class Together:
    """Modules that a loader takes only when all of them are there.

    stem   pattern of what their names begin with
    parts  how they end
    """

    stem: re.Pattern[str]
    parts: tuple[str, ...]

    def split(self, name: str) -> tuple[str, str] | None:
        """Return (stem, part) of a module that belongs to such a set, else None."""
        for part in self.parts:
            stem = name.removesuffix(part)
            if stem != name and self.stem.fullmatch(stem):
                return stem, part
        return None


# How diffusers and the original UNets call their 3×3 convolutions.
CONVOLUTIONS = re.compile(
    r"_(?:resnets_\d+_conv[12]|downsamplers_\d+_conv|upsamplers_\d+_conv|conv_in|conv_out"
    r"|(?:in_layers_2|out_layers_3)|input_blocks_(?:0_0|[369]_0_op)|output_blocks_\d+_[12]_conv|out_2)$"
)

# ---------------------------------------------------------------- hosts and metadata


@dataclass(frozen=True)
class HostModel:
    """How the model that a WebUI has loaded is known to be of a family.

    class_word  what the name of its class or of its configuration's begins with, in small letters; the
                longest of all families counts, and without one the family's own name does
    flag        attribute that is True, asked where no class tells
    """

    class_word: str = ""
    flag: str = ""


STABILITY = "https://github.com/Stability-AI/generative-models"
BLACK_FOREST = "https://github.com/black-forest-labs/flux"

# ---------------------------------------------------------------- the record


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """Everything that is known of a base family.

    Identity:
        name           as recipes, presets and messages call it
        order          place among the families in every list people see

    How it is told:
        layers         the modules of its models with their sizes, and their other names: the family that has
                       all of a file's modules in their sizes is meant
        facts          what its modules can show, for what sizes leave open and for people
        gives_way_to   the family that is meant where both fit and nothing else tells
        refused        why nothing of it can be merged; "" for all but a few
        pairs          a LoRA is two files, one for high and one for low noise
        improbable     text-encoder components that speak against it while another family fits
        config_names   what names of base models in a PEFT configuration or a header speak for it
        lines          names of base models -> the line of models they belong to (Pony, Illustrious, …)

    Blocks:
        blocks         ids in order, OTHER last; () = they come from the numbers in the paths
        block          (canonical name, number of its text encoder or 0) -> id
        lists          the lists that people paste; the first is the usual one
        counting       how the Inspire Pack counts
        parts          letters of blocks -> what they carry
        hints          single blocks -> what they carry, where more is known
        sides          letters of the blocks that are switched off to find out where a fault comes from
        presets        block weights that come with the program

    Names:
        encoders       component of a key style -> te, te1, te2, te3 as canonical names have it
        encoder_ratios what the tab calls the ratios of the text encoders
        adapters       beginnings of the denoiser's paths that some file under a text encoder
        convolutions   pattern of canonical names of 3×3 convolutions, for kinds that store flat matrices
        together       modules that a loader wants all or none of

    Metadata and hosts:
        base_version, v2                 of the header: ss_base_model_version, ss_v2
        architecture, implementation     of the header: modelspec.…
        card_version   the WebUI's `sd version` of a card
        hosts          how a loaded model is recognised
    """

    name: str
    order: int = 1000
    layers: Layers | None = None
    facts: tuple[Fact, ...] = ()
    gives_way_to: str = ""
    refused: str = ""
    pairs: bool = False
    improbable: frozenset[str] = frozenset()
    config_names: NameRules = NameRules(0, ())
    lines: NameRules = NameRules(0, ())
    blocks: tuple[str, ...] = ()
    block: Callable[[str, int], str] = numbered_block
    lists: tuple[BlockList, ...] = ()
    counting: Counting | None = None
    parts: Mapping[str, Hint] = field(default_factory=lambda: REST)
    hints: Mapping[str, Hint] = field(default_factory=dict)
    sides: tuple[str, ...] = ()
    presets: Mapping[str, ShippedPreset] = field(default_factory=lambda: {**EVEN, **NO_TEXT_ENCODER})
    encoders: Mapping[str, str] = field(default_factory=dict)
    encoder_ratios: tuple[str, ...] = ("text encoder",)
    adapters: tuple[str, ...] = ()
    convolutions: re.Pattern[str] = CONVOLUTIONS
    together: tuple[Together, ...] = ()
    base_version: str = ""
    architecture: str = ""
    implementation: str = STABILITY
    v2: bool = False
    card_version: str = "Unknown"
    hosts: HostModel | None = None

    def __post_init__(self) -> None:
        """Fill in what the name alone says."""
        object.__setattr__(self, "base_version", self.base_version or self.name.lower())
        object.__setattr__(self, "architecture", self.architecture or f"{self.name.lower()}/lora")

    def place(self, component: str, path: str, spelt: str = "", size: Size | None = None) -> Placement:
        """Return where a module goes: the name that the family's loaders know it by.

        Args:
            component: unet, or the text encoder as the key style numbers it.
            path: module path with underscores.
            spelt: how the file spells the module: what is not known here keeps its name.
            size: the model of the family whose sizes count; the usual one if None.
        """
        if component == "unet" or (self.adapters and path.startswith(self.adapters)):
            return (
                self.layers.place(path, spelt, size)
                if self.layers
                else Placement(spelt or f"lora_unet_{path}")
            )
        encoder = self.encoders.get(component, component)
        if encoder == LANGUAGE_MODEL or (spelt.startswith("text_encoders.") and _UNNAMED.match(path)):
            return Placement(spelt or f"lora_te_{path}")
        return Placement(f"lora_{'te' if encoder == 'te0' else encoder}_{path}")

    def split(self, fused: str, size: Size | None = None) -> Pieces | None:
        """Return the pieces of a fused module with their rows, or None for one that is never cut.

        Args:
            fused: its canonical name.
            size: the model of the family whose sizes count; the usual one if None.
        """
        return self.layers.split(fused, size) if self.layers else None

    def list_of(self, count: int) -> BlockList | None:
        """Return the list of `count` weights that people paste for this family, or None."""
        return next((listed for listed in self.lists if len(listed) == count), None)

    def hint(self, block: str) -> Hint | None:
        """Return what is known of a block: of itself, else of its side of the model."""
        return self.hints.get(block) or self.parts.get(block) or self.parts.get(letters(block))

    def kernel(self, name: str, columns: int) -> tuple[int, ...]:
        """Return (3, 3) for a module known to be a 3×3 convolution, () otherwise.

        Args:
            name: canonical module name.
            columns: in·kh·kw; a 3×3 kernel needs a multiple of 9.
        """
        return (3, 3) if columns % 9 == 0 and self.convolutions.search(name) else ()

    def set_of(self, name: str) -> tuple[str, str, tuple[str, ...]] | None:
        """Return (stem, part, all parts) of a module that a loader wants only with the others of its set."""
        for together in self.together:
            split = together.split(name)
            if split is not None:
                return (*split, together.parts)
        return None
