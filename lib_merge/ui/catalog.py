"""What the page must know once: methods with their knobs, families with their blocks, presets, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Union

from lib_merge.blocks import PresetStore, find_preset, preset_hint, preset_names
from lib_merge.families import FAMILIES, USUAL, Family, family_of, with_blocks
from lib_merge.kept.changes import title_of
from lib_merge.loaders import namings
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

BlockNames = list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobInfo:
    """A setting of a method."""

    name: str
    title: Annotated[str, About("what people call it", example="Drop rate")]
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
    draws: Annotated[bool, About("leaves out at random: the seed counts")]
    knobs: list[KnobInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyInfo:
    """The blocks of a base model."""

    blocks: BlockNames
    hints: Annotated[dict[str, str], About("what each block is known to carry")]
    list: Annotated[BlockNames, About("the blocks of the usual list of weights, in its order")]
    te_ratios: Annotated[BlockNames, About("what the ratios of the text encoders are called")]


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
    names: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InitReply:
    """What the page must know once."""

    methods: list[MethodInfo]
    families: dict[str, FamilyInfo]
    usual_family: Annotated[str, About("the one that is meant where none is said or told")]
    hints: dict[str, str]
    presets: Annotated[Presets, About("by family")]
    host: str
    can_generate: Annotated[bool, About("there is a txt2img tab to send things to")]
    settings: Settings
    namings: Annotated[list[list[str]], About("[how the modules of a merge can be called, in words]")]
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
        usual_family=USUAL,
        hints=hints(),
        presets=presets(desk.presets),
        host=desk.host.name,
        can_generate=desk.host.can_generate(),
        settings=Settings(
            template=option("lora_merge_template", "{sources}_{method}_{weights}_v{n}"),
            folder=option("lora_merge_folder", "merged"),
            precision=option("lora_merge_precision", "fp16"),
            names=option("lora_merge_names", ""),
        ),
        namings=namings(),
        warnings=[*desk.presets.take_warnings(), *desk.archive.take_warnings()],
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
            draws=method.drops,
            knobs=[_knob(knob) for knob in method.knobs],
        )
        for method in METHODS.values()
    ]


def _knob(knob: Knob) -> KnobInfo:
    return KnobInfo(
        name=knob.name,
        title=title_of(knob.name),
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
    """Return blocks, the usual list, hints and text encoders of every family with a table."""
    return {
        family.name: FamilyInfo(
            blocks=list(family.blocks),
            hints={block: _hint(family, block) for block in family.blocks},
            list=list(family.lists[0].blocks) if family.lists else [],
            te_ratios=list(family.encoder_ratios),
        )
        for family in with_blocks()
    }


def hints() -> dict[str, str]:
    """Return what blocks carry by their letters, for blocks of families without a table."""
    return {part: hint.says for family in FAMILIES.values() for part, hint in family.parts.items()}


def _hint(family: Family, block: str) -> str:
    hint = family.hint(block)
    return "a part of the model" if hint is None else hint.says


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
            for name in (preset_names(family, store) if family_of(family).blocks else store.names(family))
        ]
        for family in _with_presets(store)
    }


def _with_presets(store: PresetStore) -> list[str]:
    """Return every family with a table of blocks or a preset of the user's."""
    tabled = [family.name for family in with_blocks()]
    return list(dict.fromkeys([*tabled, *(preset.family for preset in store.list() if preset.family)]))


def rules_of(name: str, family: str, store: PresetStore) -> str:
    """Return a preset's element rules as text, "" where it has none."""
    preset = store.get(name, family)
    return rules_text(preset.elements if preset is not None else ())


def weights_of(name: str, family: str, store: PresetStore) -> dict[str, float | str]:
    """Return one preset as {block: weight}; blocks that are not named weigh 1."""
    known = family_of(family)
    weights = find_preset(name, family, known.blocks, store)
    if isinstance(weights, Mapping):
        return dict(weights)
    if weights is None:
        return {}
    listed = known.list_of(len(weights))
    given = dict(zip(listed.blocks, weights)) if listed is not None else {}
    return {block: 1.0 if block == "OTHER" else given.get(block, 0.0) for block in known.blocks}
