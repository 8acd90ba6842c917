"""Key names of every trainer → (component, module path, role).

A key is cut at its end (the role: `lora_up`, `alpha`, …; the adapter kinds say which ends there are) and at
its front (the component: UNet or transformer, a text encoder); what is left, dots turned to underscores, is
the module's path. Nothing here knows the base family. The adapter kinds there are stand in `KINDS`, and which
of them a module is follows from its roles.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lib_merge.adapters import cloneofsimo
from lib_merge.adapters.full import Full
from lib_merge.adapters.kind import SHARED, VECTORS, Ending, Kind, Shapes
from lib_merge.adapters.loha import LoHa
from lib_merge.adapters.lokr import LoKr
from lib_merge.adapters.lora import LoRA
from lib_merge.adapters.peft_config import Configured, PeftConfig, PeftModule
from lib_merge.adapters.refused import REFUSED
from lib_merge.errors import ModuleError
from lib_merge.files.header import FLOATS, TensorInfo

_PROCESSOR = re.compile(
    r"^(?P<stem>.+)\.processor\.(?P<what>to_[qkv]|to_out)_lora\.(?P<side>down|up)\.weight$"
)
_PLAIN_PROCESSOR = re.compile(r"^(?P<stem>.+)\.(?P<what>to_[qkv]|to_out)_lora\.(?P<side>down|up)\.weight$")
_XLABS = re.compile(
    r"^(?:diffusion_model\.)?double_blocks\.(?P<n>\d+)\.processor\.(?P<what>qkv|proj)_lora(?P<side>[12])\.(?P<half>down|up)\.weight$"
)
_XLABS_SINGLE = re.compile(
    r"^(?:diffusion_model\.)?single_blocks\.(?P<n>\d+)\.processor\.(?P<what>qkv|proj)_lora\.(?P<half>down|up)\.weight$"
)
# ComfyUI's names for what XLabs trains of a single block: q, k and v of linear1, and linear2
_XLABS_LAYERS = {"qkv": "linear1_qkv", "proj": "linear2"}
# PEFT puts the adapter's name between a tensor's and `weight`
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.[^.]+\.(weight|bias)$")
_OFT_LIST = re.compile(r"^(?P<stem>.+)\.oft_blocks\.(?P<n>\d+)$")
_SCALE = re.compile(r"^(?P<stem>.+?)(?P<weight>\.weight)?\.(?:scale_weight|weight_scale)$")
_PEFT_DOWN = re.compile(r"\.lora_A(?:\.|$)")
# of fp8 arithmetic: how its inputs are scaled, and that it is used at all
_INPUT_SCALE = re.compile(r"\.(?:scale_input|input_scale)$")
_ADAPTERS_OWN = re.compile(
    r"(?:^|[._])(?:lora|lycoris|hada|lokr|b?oft|dora|glora|vera|hra|ia3|bone)(?=[._\d]|$)"
)
# front -> component; the first that matches is cut off
_FRONTS: tuple[tuple[str, str, str], ...] = (
    ("lora_unet__", "unet", "kohya"),
    ("lora_unet_", "unet", "kohya"),
    ("oft_unet_", "unet", "kohya"),
    ("lora_te1_", "te1", "kohya"),
    ("lora_te2_", "te2", "kohya"),
    ("lora_te3_", "te3", "kohya"),
    ("lora_te_", "te0", "kohya"),
    ("lora_transformer_", "unet", "OneTrainer"),
    ("lora_prior_unet_", "unet", "kohya"),
    ("lycoris_text_encoder_2_", "te2", "LyCORIS"),
    ("lycoris_text_encoder_", "te", "LyCORIS"),
    ("lycoris_", "unet", "LyCORIS"),
    ("model.diffusion_model.", "unet", "BFL"),
    ("diffusion_model.", "unet", "ai-toolkit"),
    ("transformer.", "unet", "diffusers"),
    ("unet.", "unet", "diffusers"),
    ("text_encoder_3.", "te3", "diffusers"),
    ("text_encoder_2.", "te2", "diffusers"),
    ("text_encoder.", "te", "diffusers"),
    ("clip_l.", "te1", "OMI"),
    ("clip_g.", "te2", "OMI"),
    ("t5.", "te3", "OMI"),
)
_CONTAINERS = ("base_model.model.", "base_model.")
# a text encoder as ComfyUI and Forge Neo call it; one that is not named here is a language model
_ENCODER = re.compile(r"^text_encoders\.(?P<name>\w+)\.(?:transformer\.)?(?P<rest>.+)$", re.DOTALL)
_ENCODERS = {"clip_l": "te1", "clip_g": "te2", "clip_h": "te0", "t5xxl": "te3"}
_TEXT_ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
    "to_out_0": "out_proj",
}
_MARKERS = frozenset({"metadata_key_for_stripped_models", "scaled_fp8"})


@dataclass(frozen=True, slots=True)
class RawModule:
    """One module before its family is known.

    component  unet, te0 (kohya's single `lora_te_`), te (a text encoder whose number the family decides),
               te1, te2, te3, lm (one that is a language model)
    path       module path with underscores, prefix stripped
    roles      role -> key in the file; the scale of an fp8 factor has the factor's role and ".scale"
    scale      from a PEFT configuration; None = the file's alpha, or 1
    spelt      how the file spells the module, with its prefix; "" where its keys do not show it
    """

    component: str
    path: str
    roles: Mapping[str, str]
    scale: float | None = None
    spelt: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the key names of one file say.

    style       how the names are written, for people
    modules     in the order of first appearance
    embeddings  bundled textual inversions: name -> keys
    unknown     keys nothing claims
    unread      those of them that are an adapter's weights, so that the file cannot be merged without them
    notes       sentences for the report
    config      the PEFT configuration, where it is this file's
    """

    style: str
    modules: tuple[RawModule, ...]
    embeddings: Mapping[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: PeftConfig | None = None


def parse_keys(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], config: PeftConfig | None, file: str
) -> Parsed:
    """Group a file's keys into modules.

    Args:
        tensors: the header's table.
        metadata: the header's texts.
        config: a PEFT configuration, when there is one.
        file: the file's name, for messages.
    Raises:
        ModuleError: two keys mean the same tensor of the same module.
    """
    positional = cloneofsimo.parse(tensors, metadata, file)
    if positional is not None:
        modules = tuple(
            RawModule(component, path, roles, 1.0) for component, path, roles in positional.modules
        )
        return Parsed("cloneofsimo", modules, positional.embeddings, positional.unknown)
    return _by_name(tensors, config, file)


def _by_name(tensors: Mapping[str, TensorInfo], config: PeftConfig | None, file: str) -> Parsed:
    groups: dict[tuple[str, str], dict[str, str]] = {}
    dotted: dict[tuple[str, str], str] = {}
    styles: dict[str, int] = {}
    embeddings: dict[str, list[str]] = {}
    unknown: list[str] = []
    inputs: list[str] = []
    kinds = tuple(KINDS)
    ends = _key_ends(kinds)
    for key in tensors:
        if key.startswith("bundle_emb."):
            embeddings.setdefault(key.split(".")[1], []).append(key)
            continue
        if key in _MARKERS:
            continue
        parts = _split(key, kinds)
        if parts is None:
            (inputs if _INPUT_SCALE.search(key) else unknown).append(key)
            continue
        component, stem, role, style = parts
        styles[style] = styles.get(style, 0) + 1
        place = (component, stem.replace(".", "_"))
        roles = groups.setdefault(place, {})
        if roles.setdefault(role, key) != key:
            message = f"{file}: the keys {roles[role]} and {key} both mean {role} of {place[1]}."
            raise ModuleError(message)
        dotted.setdefault(place, stem)
    groups = _without_strangers(groups, ends, unknown)
    scales, configured = _configured(groups, dotted, config, tensors)
    notes = list(configured.notes)
    if inputs:
        notes.append(f"{file}: {len(inputs)} scales of fp8 inputs are no part of a weight and were not used")
    return Parsed(
        style=max(styles, key=lambda name: (styles[name], name)) if styles else "unknown",
        modules=tuple(
            RawModule(*place, roles, scales.get(place), _spelt(roles, kinds))
            for place, roles in groups.items()
        ),
        embeddings={name: tuple(keys) for name, keys in embeddings.items()},
        unknown=tuple(unknown),
        unread=tuple(key for key in unknown if _is_adapters(key, tensors[key])),
        notes=tuple(notes),
        config=configured.config,
    )


def _is_adapters(key: str, info: TensorInfo) -> bool:
    """Tell whether a key without a meaning is the weight of some adapter, by its name."""
    return info.dtype in FLOATS and _ADAPTERS_OWN.search(key) is not None


def _without_strangers(
    groups: dict[tuple[str, str], dict[str, str]], ends: KeyEnds, unknown: list[str]
) -> dict[tuple[str, str], dict[str, str]]:
    """Take out what is a tensor of some other model: a bare `.weight` is IA3 only beside `.on_input`."""
    kept = {}
    for place, roles in groups.items():
        for role, other in ends.only_beside.items():
            if role in roles and other not in roles:
                unknown.append(roles.pop(role))
        if roles:
            kept[place] = roles
    return kept


@functools.lru_cache(maxsize=1 << 14)
def _split(key: str, kinds: tuple[Kind, ...]) -> tuple[str, str, str, str] | None:
    """Return (component, stem with dots, role, style), or None for a key of no known form.

    Remembered, for the files of a merge have mostly the same keys.
    """
    ends = _key_ends(kinds)
    of_processor = _of_processor(key) if "_lora" in key else None
    if of_processor is not None:
        return of_processor
    plain = _ADAPTER.sub(r".\1.\2", key) if ".lora_" in key else key
    found = _scale_of_factor(key, ends) or _piece_of_oft(key) or _longest_end(plain, ends)
    if found is None:
        return None
    stem, end = found
    component, rest, style = _front(stem)
    return component, rest, end.role, style or end.style or "kohya"


def _of_processor(key: str) -> tuple[str, str, str, str] | None:
    """Read the key of a LoRA that attention processors hold: XLabs', and diffusers' old ones."""
    match = _XLABS.match(key)
    if match:
        side = "img" if match["side"] == "1" else "txt"
        stem = f"double_blocks.{match['n']}.{side}_attn.{match['what']}"
        return "unet", stem, f"lora_{match['half']}", "XLabs"
    match = _XLABS_SINGLE.match(key)
    if match:
        stem = f"single_blocks.{match['n']}.{_XLABS_LAYERS[match['what']]}"
        return "unet", stem, f"lora_{match['half']}", "XLabs"
    match = _PROCESSOR.match(key) or _PLAIN_PROCESSOR.match(key)
    if match:
        component, stem, _ = _front(f"{match['stem']}.{match['what']}")
        return component, stem, f"lora_{match['side']}", "diffusers (attention processors)"
    return None


def _longest_end(key: str, ends: KeyEnds) -> tuple[str, Ending] | None:
    """Return what stands before the longest end that has a meaning, and that meaning."""
    at = len(key)
    best = None
    for _ in range(ends.parts):
        at = key.rfind(".", 0, at)
        if at < 0:
            break
        end = ends.means.get(key[at + 1 :])
        if end is not None:
            best = (key[:at], end)
    return best if best is not None and best[0] else None


def _scale_of_factor(key: str, ends: KeyEnds) -> tuple[str, Ending] | None:
    """Read the key of what an fp8 factor is to be multiplied with: `lora_up.scale_weight` and the like."""
    match = _SCALE.match(key) if "scale" in key else None
    if match is None:
        return None
    found = _longest_end(match["stem"], ends) or _longest_end(f"{match['stem']}.weight", ends)
    if found is None or found[1].role in ends.only_beside or found[1].role in (*VECTORS, "alpha"):
        return None
    return found[0], Ending(f"{found[1].role}.scale", found[1].style)


def _piece_of_oft(key: str) -> tuple[str, Ending] | None:
    """Read the key of one of kohya's OFT blocks of a module that is several layers in one (Flux' linear1)."""
    match = _OFT_LIST.match(key) if "oft_blocks" in key else None
    return match and (match["stem"], Ending(f"oft_diag.{match['n']}", "kohya"))


@functools.lru_cache(maxsize=1 << 13)
def _front(stem: str) -> tuple[str, str, str]:
    """Return (component, rest, style) of a module name; a module's keys ask one after the other."""
    component, rest, style = _cut_front(stem)
    return component, _attention(component, rest), style


def _cut_front(stem: str) -> tuple[str, str, str]:
    stem, style = _out_of_containers(stem, "")
    for front, component, named in _FRONTS:
        if stem.startswith(front):
            rest, inside = _out_of_containers(stem[len(front) :], named)
            return component, rest, style or inside
    match = _ENCODER.match(stem)
    if match:
        component = _ENCODERS.get(match["name"], "lm")
        rest = match["rest"]
        return component, rest.removeprefix("model.") if component == "lm" else rest, style or "BFL"
    if stem.startswith(("text_model.encoder.", "text_model_encoder_")):
        return "te", stem, style
    return "unet", stem, style


def _out_of_containers(stem: str, style: str) -> tuple[str, str]:
    """Return a name without PEFT's containers, and the style it tells."""
    for container in _CONTAINERS:
        if stem.startswith(container):
            stem, style = stem[len(container) :], "PEFT"
    return stem, style


def _spelt(roles: Mapping[str, str], kinds: tuple[Kind, ...]) -> str:
    """Return how a file spells a module, with its prefix; "" where its keys have no end of their own."""
    return next(filter(None, (_stem(key, kinds) for key in roles.values())), "")


@functools.lru_cache(maxsize=1 << 13)
def _stem(key: str, kinds: tuple[Kind, ...]) -> str:
    found = _longest_end(key, _key_ends(kinds))
    return found[0] if found is not None else ""


def _attention(component: str, stem: str) -> str:
    """Spell the attention projections of text encoders as their modules are called: q_proj, out_proj."""
    head, dot, last = stem.rpartition(".")
    if component not in ("unet", "lm") and last in _TEXT_ATTENTION:
        return f"{head}{dot}{_TEXT_ATTENTION[last]}"
    return stem


def _configured(
    groups: Mapping[tuple[str, str], Mapping[str, str]],
    dotted: Mapping[tuple[str, str], str],
    config: PeftConfig | None,
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[tuple[str, str], float], Configured]:
    """Return the scales that a PEFT configuration gives, and what is to be told of it.

    It speaks for keys in PEFT's spelling that bring no alpha of their own.
    """
    if config is None:
        return {}, Configured({}, (), None)
    modules = {
        place: PeftModule(place[0], dotted[place], shape[0] if shape else 0)
        for place, roles in groups.items()
        if "alpha" not in roles and _PEFT_DOWN.search(key := roles.get("lora_down", ""))
        for shape in [tensors[key].shape]
    }
    found = config.scales(list(modules.values()))
    return {place: found.scales[one] for place, one in modules.items() if one in found.scales}, found


# ---------------------------------------------------------------- kinds

KINDS: list[Kind] = [LoRA(), LoHa(), LoKr(), Full(), *REFUSED]


class KeyEnds(NamedTuple):
    """What the ends of keys mean.

    means        end of a key -> role and style
    parts        dotted parts that the longest has
    only_beside  role -> the role without which it is a tensor of some other model
    """

    means: Mapping[str, Ending]
    parts: int
    only_beside: Mapping[str, str]


def register(kind: Kind) -> None:
    """Add a kind.

    Raises:
        ValueError: one of its key endings means something else already.
    """
    known = key_ends().means
    for end, ending in kind.endings.items():
        if end in known and known[end].role != ending.role:
            message = f"{kind.name}: keys that end in {end} are {known[end].role} already"
            raise ValueError(message)
    KINDS.append(kind)


def unregister(kind: Kind) -> None:
    """Take a kind out again."""
    KINDS.remove(kind)


def kind_of(roles: Collection[str]) -> Kind | None:
    """Return the kind of a module, or None.

    A kind that needs the base weight is asked first: a DoRA has all tensors of a LoRA, and one more.
    """
    plain = frozenset(role.partition(".")[0] for role in roles)
    return min(_matching(tuple(KINDS), plain), key=lambda kind: not kind.needs_base, default=None)


@functools.lru_cache(maxsize=256)
def _matching(kinds: tuple[Kind, ...], roles: frozenset[str]) -> tuple[Kind, ...]:
    """Return the kinds that a module with these roles may be of."""
    return tuple(kind for kind in kinds if kind.matches(roles))


def sides(shapes: Shapes) -> tuple[int, int]:
    """Return (rows, columns) of a linear module from whichever tensors show them; 0 where none does.

    Args:
        shapes: role -> shape.
    """
    rows = columns = 0
    for kind in _matching(tuple(KINDS), frozenset(shapes)):
        own_rows, own_columns = kind.sides(shapes)
        rows, columns = rows or own_rows, columns or own_columns
    return rows, columns


def key_ends() -> KeyEnds:
    """Return what the ends of keys mean, for every kind."""
    return _key_ends(tuple(KINDS))


@functools.lru_cache(maxsize=8)
def _key_ends(kinds: tuple[Kind, ...]) -> KeyEnds:
    means = dict(SHARED)
    only_beside: dict[str, str] = {}
    for kind in kinds:
        means.update(kind.endings)
        only_beside.update(kind.only_beside)
    return KeyEnds(means, max(end.count(".") + 1 for end in means), only_beside)
