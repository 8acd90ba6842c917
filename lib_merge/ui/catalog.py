"""What the page must know once: methods with their knobs, families with their blocks, presets, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Union

from lib_merge.blocks import PresetStore, find_preset, preset_hint, preset_names
from lib_merge.families.blocks import BLOCK_ORDERS, BLOCKS
from lib_merge.methods import METHODS, Space
from lib_merge.methods.registry import Knob, KnobKind, Scope
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.protocol import About
from lib_merge.ui.state import rules_text

GROUPS = {
    Space.SCALAR: "Exact sums and means",
    Space.CORE: "Exact, in the LoRAs' shared directions",
    Space.DENSE: "Number by number, then cut to a rank",
}
# What a block is known to carry, after common practice; a starting point, not a law.
HINTS: Mapping[str, str] = {
    "BASE": "text encoder: what words mean",
    "IN": "input blocks: structure, pose, low-level features",
    "M": "middle: overall composition",
    "OUT": "output blocks: rendering, colour, style",
    "CLIP": "CLIP text encoder",
    "T5": "T5 text encoder",
    "D": "double-stream block: image and text together",
    "S": "single-stream block: details and rendering",
    "OTHER": "what belongs to no block: time embedding, last convolution",
}
# Width of the features in each block as a part of the picture's side. Coarse blocks decide shapes and
# arrangement, fine ones surfaces and colour (Voynov et al. 2023, "P+", measured on SD1's cross-attention).
_HALF: Mapping[str, int] = {
    **{f"IN{index:02d}": 8 * 2 ** (index // 3) for index in range(12)},
    "M00": 64,
    **{f"OUT{index:02d}": 64 // 2 ** (index // 3) for index in range(12)},
}
_THIRD: Mapping[str, int] = {
    **{f"IN{index:02d}": 8 * 2 ** (index // 3) for index in range(9)},
    "M00": 32,
    **{f"OUT{index:02d}": 32 // 2 ** (index // 3) for index in range(9)},
}
WIDTHS: Mapping[str, Mapping[str, int]] = {"SD1": _HALF, "SD2": _HALF, "SDXL": _THIRD}
CARRIES = {
    8: "fine detail, texture, colour",
    16: "surfaces, middle-sized detail",
    32: "shapes and parts",
    64: "arrangement, rough shapes",
}
# single blocks of SDXL that were singled out: content and style by Frenkel et al. 2024 ("B-LoRA"),
# arrangement and style by Wang et al. 2024 ("InstantStyle")
KNOWN: Mapping[str, Mapping[str, str]] = {
    "SDXL": {
        "IN08": "the block that holds the arrangement of the picture",
        "OUT00": "the block that holds what is shown",
        "OUT01": "the block that holds style and colours",
    },
}
LISTS = {"SD1": 17, "SD2": 17, "SDXL": 12, "Flux": 61, "Chroma": 61}


BlockNames = list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobInfo:
    """A setting of a method."""

    name: str
    kind: KnobKind
    default: Union[float, bool, str]
    minimum: float
    maximum: float
    step: float
    choices: list[str]
    help: str
    scope: Annotated[Scope, About("recipe: one value; source: one, or a list of one for each source")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """A merge method and its knobs."""

    name: str
    title: str
    sentence: str
    paper: str
    space: Annotated[Space, About("where it acts")]
    group: Annotated[str, About("the heading it stands under")]
    least: Annotated[int, About("fewest sources")]
    most: Annotated[int | None, About("most sources, null where there is no end")]
    roles: list[str]
    symmetric: Annotated[bool, About("the order of the sources does not matter")]
    knobs: list[KnobInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyInfo:
    """The blocks of a base model."""

    blocks: BlockNames
    hints: Annotated[dict[str, str], About("what each block is known to carry")]
    list: Annotated[BlockNames, About("the blocks of the usual list of weights, in its order")]
    orders: Annotated[dict[str, BlockNames], About("length of a list -> its blocks")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetInfo:
    """Block weights by name."""

    name: str
    own: Annotated[bool, About("saved here, not shipped")]
    hint: str
    weights: Annotated[dict[str, Union[float, str]], About("R, U and X are texts until they are drawn")]
    elements: str


Presets = dict[str, list[PresetInfo]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the host is set to for new merges."""

    template: str
    folder: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReply:
    """What the page must know once."""

    methods: list[MethodInfo]
    families: dict[str, FamilyInfo]
    hints: dict[str, str]
    presets: Annotated[Presets, About("by family")]
    host: str
    can_generate: Annotated[bool, About("there is a txt2img tab to send things to")]
    settings: Settings
    warnings: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodsReply:
    """Every merge method."""

    methods: list[MethodInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetsReply:
    """Every family's presets."""

    presets: Annotated[Presets, About("by family")]


@operation("init")
def init(desk: Desk) -> InitReply:
    """Return methods, families, presets, settings."""
    desk.library.refresh()
    option = desk.host.option
    return InitReply(
        methods=methods(),
        families=families(),
        hints=dict(HINTS),
        presets=presets(desk.presets),
        host=desk.host.name,
        can_generate=desk.host.can_generate(),
        settings=Settings(
            template=option("lora_merge_template", "{sources}_{method}_{weights}_v{n}"),
            folder=option("lora_merge_folder", "merged"),
            precision=option("lora_merge_precision", "fp16"),
        ),
        warnings=list(desk.presets.take_warnings()),
    )


@operation("methods", rest="GET /methods")
def list_methods(desk: Desk) -> MethodsReply:
    """Every merge method with its knobs."""
    del desk
    return MethodsReply(methods=methods())


@operation("presets", rest="GET /presets")
def list_presets(desk: Desk) -> PresetsReply:
    """Block-weight presets."""
    return PresetsReply(presets=presets(desk.presets))


def methods() -> list[MethodInfo]:
    """Return the registry for the method picker."""
    return [
        MethodInfo(
            name=method.name,
            title=method.title,
            sentence=method.sentence,
            paper=method.paper,
            space=method.space,
            group=GROUPS[method.space],
            least=method.sources[0],
            most=method.sources[1],
            roles=list(method.roles),
            symmetric=method.symmetric,
            knobs=[_knob(knob) for knob in method.knobs],
        )
        for method in METHODS.values()
    ]


def _knob(knob: Knob) -> KnobInfo:
    return KnobInfo(
        name=knob.name,
        kind=knob.kind,
        default=knob.default,
        minimum=knob.minimum,
        maximum=knob.maximum,
        step=knob.step,
        choices=list(knob.choices),
        help=knob.help,
        scope=knob.scope,
    )


def families() -> dict[str, FamilyInfo]:
    """Return blocks, list orders and hints of every family with a table."""
    return {
        family: FamilyInfo(
            blocks=list(blocks),
            hints={block: hint(family, block) for block in blocks},
            list=list(BLOCK_ORDERS[LISTS[family]]) if family in LISTS else [],
            orders={
                str(length): list(order)
                for length, order in BLOCK_ORDERS.items()
                if set(order) <= set(blocks)
            },
        )
        for family, blocks in BLOCKS.items()
    }


def hint(family: str, block: str) -> str:
    """Return what a block is known to carry; of blocks without a name of their own, what its side of the
    model does.
    """
    side = HINTS.get(block) or HINTS.get(block.rstrip("0123456789"), "a part of the model")
    width = WIDTHS.get(family, {}).get(block)
    known = KNOWN.get(family, {}).get(block)
    if known:
        return known
    return f"{side}. Its features are 1/{width} as wide as the picture: {CARRIES[width]}" if width else side


def presets(store: PresetStore) -> Presets:
    """Return every family's presets as {block: weight}, the shipped ones first."""
    own = {preset.name for preset in store.list()}
    return {
        family: [
            PresetInfo(
                name=name,
                own=name in own,
                hint="" if name in own else preset_hint(name),
                weights=weights_of(name, family, store),
                elements=rules_of(name, family, store) if name in own else "",
            )
            for name in (preset_names(family, store) if family in BLOCKS else store.names(family))
        ]
        for family in dict.fromkeys([*BLOCKS, *(preset.family for preset in store.list() if preset.family)])
    }


def rules_of(name: str, family: str, store: PresetStore) -> str:
    """Return a preset's element rules as text, "" where it has none."""
    preset = store.get(name, family)
    return rules_text(preset.elements if preset is not None else ())


def weights_of(name: str, family: str, store: PresetStore) -> dict[str, float | str]:
    """Return one preset as {block: weight}; blocks that are not named weigh 1."""
    weights = find_preset(name, family, BLOCKS.get(family, ()), store)
    if isinstance(weights, Mapping):
        return dict(weights)
    if weights is None:
        return {}
    given = dict(zip(BLOCK_ORDERS[len(weights)], weights))
    return {block: 1.0 if block == "OTHER" else given.get(block, 0.0) for block in BLOCKS.get(family, ())}
