"""What a LoRA is besides its family and kind: speed, edit or control LoRA, slider, one of a pair, an epoch.

Every mark says what it rests on. A name alone is a "perhaps": names are typed by people, and `turbo_car`
is a car. A renamed file without metadata is told by its modules alone, which only those of a control LoRA do;
the others are missed then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib_merge import metadata
from lib_merge.adapters import LoraFile
from lib_merge.analysis.names import (
    SpeedName,
    edit_name,
    epoch_name,
    noise_name,
    slider_name,
    speed_name,
)

SORTS = ("speed", "edit", "control", "slider", "high noise", "low noise", "epoch")
TITLES = {
    "speed": "speed LoRA",
    "edit": "LoRA of an edit model",
    "control": "control LoRA",
    "slider": "slider",
    "high noise": "LoRA for high noise",
    "low noise": "LoRA for low noise",
    "epoch": "epoch of a run",
}
NAME, MODULES, SPECTRUM, PARTNER = (
    "the file's name",
    "its modules",
    "its spectrum",
    "a partner file beside it",
)
# Effective rank beside the rank from which a spectrum is flat. Trained styles and characters decay; a
# distillation uses all it has. Random numbers are flat as well, so that this only ever supports a name.
# Short spectra tell nothing.
FLAT, LEAST_RANK = 0.6, 16


@dataclass(frozen=True, slots=True)
class Mark:
    """What a LoRA is, and what says so; made by `mark`.

    sort      one of `SORTS`
    what      which of them, from a fixed list (Lightning, Kontext …), or the number of an epoch; "" for none
    sure      more than a name speaks for it
    evidence  what it rests on, from a fixed list, or "metadata: " and a field's name
    holds     its ratio is part of what it does, and is not changed with those of the others
    said      all of it in words
    """

    sort: str
    what: str
    sure: bool
    evidence: tuple[str, ...]
    holds: bool
    said: str


def mark(sort: str, what: str, evidence: Sequence[str], *, sure: bool) -> Mark:
    """Return a mark; see the fields of `Mark`."""
    title = f"{TITLES[sort]} ({what})" if what else TITLES[sort]
    why = " and ".join(evidence)
    said = f"{title}: {why}" if sure else f"perhaps {title}: {why} only"
    return Mark(sort=sort, what=what, sure=sure, evidence=tuple(evidence), holds=sort == "speed", said=said)


@dataclass(frozen=True, slots=True)
class Traits:
    """What is looked at to recognise a LoRA; all of it stands in the header but the flatness.

    path      of the file; its name counts, and whether a partner lies beside it
    metadata  the header's
    families  that its shapes allow
    paths     component -> paths of its modules
    roles     every role that one of its tensors has
    inputs    path of a denoiser's module -> columns of its ΔW, where they show
    flatness  effective rank ÷ rank, see `with_flatness`; None where the tensors were not read
    """

    path: Path
    metadata: Mapping[str, str]
    families: tuple[str, ...]
    paths: Mapping[str, frozenset[str]]
    roles: frozenset[str]
    inputs: Mapping[str, int]
    flatness: float | None = None


def traits_of(file: LoraFile) -> Traits:
    """Return what a header tells of a LoRA."""
    paths: dict[str, set[str]] = {}
    roles: set[str] = set()
    inputs: dict[str, int] = {}
    for module in file.parsed.modules:
        paths.setdefault(module.component, set()).add(module.path)
        roles.update(module.roles)
        key = module.roles.get("lora_down")
        shape = file.file.tensors[key].shape if key is not None else ()
        if module.component == "unet" and len(shape) == 2:
            inputs[module.path] = int(shape[1])
    return Traits(
        path=file.path,
        metadata=dict(file.metadata),
        families=tuple(file.guess.candidates),
        paths={component: frozenset(found) for component, found in paths.items()},
        roles=frozenset(roles),
        inputs=inputs,
    )


def recognise(traits: Traits) -> tuple[Mark, ...]:
    """Return what a LoRA is, in the order of `SORTS`; nothing for most."""
    return tuple(found for look in _LOOKS for found in look(traits))


def recognised(file: LoraFile) -> tuple[Mark, ...]:
    """Return what a header says a LoRA is; see `recognise`."""
    return recognise(traits_of(file))


def with_flatness(traits: Traits, effective: float, ranks: tuple[int, int]) -> Traits:
    """Return the traits with the shape of the spectrum, where it is long enough to have one.

    Args:
        traits: of the header.
        effective: effective rank of the whole file, exp(entropy) weighted by energy.
        ranks: (least, greatest) rank in the file.
    """
    return replace(traits, flatness=effective / ranks[1]) if ranks[1] >= LEAST_RANK else traits


def held(marks: Iterable[Mark]) -> Mark | None:
    """Return the mark that keeps a LoRA's ratio as it is; None where nothing does."""
    return next((found for found in marks if found.holds), None)


# ------------------------------------------------------------------------ fields of the metadata

_NAMES = ("ss_output_name", "modelspec.title", "name")
_TEXTS = (
    "modelspec.description",
    "modelspec.usage_hint",
    "modelspec.tags",
    "ss_training_comment",
    "description",
)
_BASES = ("ss_base_model_version", "ss_sd_model_name", "modelspec.architecture", "base_model")
_MOST = 4000


def _fields(traits: Traits, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (evidence, text) of the fields that are there."""
    for field in fields:
        text = traits.metadata.get(field, "")
        if text:
            yield f"metadata: {field}", text[:_MOST]


def _named(traits: Traits) -> Iterator[tuple[str, str]]:
    """Yield (evidence, name) of everything that names the file."""
    yield NAME, traits.path.stem
    yield from _fields(traits, _NAMES)


# ------------------------------------------------------------------------ speed

_DISTILLED = re.compile(
    r"(?:step|cfg|guidance|consistency|timestep|trajectory)[- ]distill|distill(?:ation|ed) (?:lora|adapter)|"
    r"\blcm[- ]lora\b|few[- ]step (?:lora|adapter|distill)|(?:acceleration|speed[- ]?up) (?:lora|adapter)",
    re.IGNORECASE,
)
# what a distillation changes and people who train a style leave alone
_SAMPLERS = re.compile(r"(?:down|up)samplers?_0_conv$|input_blocks_[36]_0_op$|output_blocks_[258]_[12]_conv$")
_TIMES = re.compile(r"resnets_\d+_time_emb_proj$|_emb_layers_1$")
_EDGES = {
    name: re.compile(pattern)
    for name, pattern in {
        "image in": r"^(?:x_embedder|img_in|patch_embedding)",
        "text in": r"^(?:context_embedder|txt_in|text_embedding|txt_norm)",
        "time in": r"^(?:time_text_embed|time_in|vector_in|guidance_in|time_(?:embedding|projection))",
        "out": r"^(?:norm_out|proj_out|final_layer|head)",
    }.items()
}


def _speed(traits: Traits) -> Iterator[Mark]:
    names = [(why, found) for why, name in _named(traits) if (found := speed_name(name)) is not None]
    # what a merge says of itself is the names of its sources once more
    told = () if metadata.recipe_of(traits.metadata) else _TEXTS
    texts = [why for why, text in _fields(traits, told) if _DISTILLED.search(text)]
    modules = [MODULES] if _whole_network(traits) else []
    flat = [SPECTRUM] if traits.flatness is not None and traits.flatness >= FLAT else []
    if not names and not texts:
        return
    best: SpeedName = max(
        (found for _, found in names), key=lambda one: one.telling, default=SpeedName("", telling=False)
    )
    said = tuple(why for why, found in names if found.telling or not best.telling)
    if names and (texts or (modules and (flat or best.telling)) or (flat and best.telling)):
        yield mark("speed", best.what, (*said, *texts, *modules, *flat), sure=True)
    elif best.telling or texts or modules:
        yield mark("speed", best.what, (*said, *texts, *modules), sure=False)


def _whole_network(traits: Traits) -> bool:
    """Tell whether the file changes the whole denoiser and no text encoder.

    That is what distillation scripts train, and what an extraction from two checkpoints has; people who
    train a style or a character leave samplers, time embeddings, first and last layers or biases alone.
    """
    if set(traits.paths) != {"unet"}:
        return False
    paths = traits.paths["unet"]
    if any(_SAMPLERS.search(path) for path in paths) and any(_TIMES.search(path) for path in paths):
        return True
    edges = sum(any(pattern.search(path) for path in paths) for pattern in _EDGES.values())
    extracted = {"diff", "diff_b"} <= traits.roles and "lora_down" in traits.roles
    return edges >= 3 or (extracted and edges >= 1)


# ------------------------------------------------------------------------ edit, control, sliders

# columns of Flux's first layer where pictures come in beside the noise; 64 is a plain one
_MORE_INPUTS = {128: "depth or canny", 384: "Fill"}


def _edit(traits: Traits) -> Iterator[Mark]:
    bases = [(why, what) for why, text in _fields(traits, _BASES) if (what := edit_name(text))]
    names = [(why, what) for why, text in _named(traits) if (what := edit_name(text))]
    found = [*bases, *names]
    if found:
        yield mark("edit", found[0][1], [why for why, _ in found], sure=bool(bases))


def _control(traits: Traits) -> Iterator[Mark]:
    if "Flux" not in traits.families:
        return
    for first in ("img_in", "x_embedder"):
        what = _MORE_INPUTS.get(traits.inputs.get(first, 0))
        if what is not None:
            yield mark("control", what, [MODULES], sure=True)
            return


def _slider(traits: Traits) -> Iterator[Mark]:
    names = [why for why, name in _named(traits) if slider_name(name)]
    if not names:
        return
    paths = traits.paths.get("unet", frozenset())
    crossed = [path for path in paths if "_attn2_" in path]
    alone = set(traits.paths) == {"unet"} and any("attn" in path for path in paths)
    shaped = (
        alone and len(crossed) in (0, len(paths)) and not any(path.startswith("blocks_") for path in paths)
    )
    shaped = shaped and bool({"SD1", "SD2", "SDXL"} & set(traits.families))
    yield mark("slider", "", [*names, *([MODULES] if shaped else [])], sure=shaped)


# ------------------------------------------------------------------------ pairs, epochs


def _noise(traits: Traits) -> Iterator[Mark]:
    """Yield the noise level of a Wan LoRA: its name speaks of noise, or of HIGH or L beside a partner."""
    if "Wan" not in traits.families:
        return
    for why, name in _named(traits):
        found = noise_name(name)
        if found is None:
            continue
        partner = why == NAME and _there(traits.path.with_name(f"{found.partner}{traits.path.suffix}"))
        if found.explicit or partner:
            yield mark(f"{found.level} noise", "", [why, *([PARTNER] if partner else [])], sure=partner)
            return


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the disk
        return False


def _epoch(traits: Traits) -> Iterator[Mark]:
    """Yield the epoch of a file that was saved on the way; the last of a run is no epoch but the LoRA."""
    epoch, last = (traits.metadata.get(field, "") for field in ("ss_epoch", "ss_num_epochs"))
    named = epoch_name(traits.path.stem)
    if all(re.fullmatch("[0-9]{1,7}", number) for number in (epoch, last)) and int(epoch) < int(last):
        evidence = (*([NAME] if named is not None else []), "metadata: ss_epoch")
        yield mark("epoch", str(int(epoch)), evidence, sure=True)
    elif named is not None:
        yield mark("epoch", str(named[1]), [NAME], sure=False)


_LOOKS = (_speed, _edit, _control, _slider, _noise, _epoch)

__all__ = [
    "SORTS",
    "TITLES",
    "Mark",
    "Traits",
    "held",
    "recognise",
    "recognised",
    "traits_of",
    "with_flatness",
]
