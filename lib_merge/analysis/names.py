"""What the name of a LoRA says: a speed LoRA's method, a noise level of Wan 2.2, an epoch, a slider.

A name is what somebody typed. What is read here is never more than a hint, and `recognition` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# ------------------------------------------------------------------------ speed

# words that mean nothing else, and what they are called
_TELLING = {
    r"lightx2v": "lightx2v",
    r"caus_?vid": "CausVid",
    r"acc_?vid(?:eo)?": "AccVideo",
    r"fast_?wan": "FastWan",
    r"self_?forcing": "Self-Forcing",
    r"dmd2": "DMD2",
    r"hyper_?sd": "Hyper-SD",
    r"lcm_?lora": "LCM",
    r"(?:step|cfg|guidance)_?distill(?:ed|ation)?": "distilled",
}
# words that also mean something else: a bolt of lightning, a turbo car, somebody's initials
_ORDINARY = {
    "lightning": "Lightning",
    "hyper": "Hyper-SD",
    "turbo": "Turbo",
    "lcm": "LCM",
    "dmd": "DMD2",
    "tcd": "TCD",
    "pcm": "PCM",
    "rcm": "rCM",
    "flash": "Flash",
    "schnell": "Schnell",
    "distill": "distilled",
    "distilled": "distilled",
    "distillation": "distilled",
}
_STEPS = re.compile(r"(?:^|_)(?:1?\d)_?steps?(?=_|$)")
# names of base models, which a LoRA made for them carries, and the opposite of a distillation
_BASES = re.compile(r"z_?image_?turbo|(?:^|_)zit(?=_|$)|(?:de|un)_?distill(?:ed|ation)?")
_FAMILY = re.compile(
    r"sd|sdv?\d+|sdxl|xl|ssd|flux\d?|kontext|qwen|wan\d*|ltxv?|hunyuan(?:video)?|chroma|kolors|pixart|hidream|krea\d?"
)
_FILLING = re.compile(
    r"\d+|v\d+|[tif]2[vi]|[a-z]?\d+b|\d+p|1b|r\d+|rank\d*|dim\d*|alpha|beta|lo_?ras?|lora|fp\d+|bf\d+|half|full|unet|"
    r"model|weights?|pytorch|image|edit|dev|base|video|cfg|steps?|\d+steps?|high|low|noise|hn|ln|comfy(?:ui)?|kijai|"
    r"bytedance|alimama|tencent|tianweiy|seko|converted|extract(?:ed)?|resized?|adaptive|official|refiners?|safetensors"
)


@dataclass(frozen=True, slots=True)
class SpeedName:
    """A name with a word for a way of sampling in few steps.

    what     which way, from a fixed list
    telling  the word means nothing else, or steps or nothing but technical words stand beside it
    """

    what: str
    telling: bool


def speed_name(name: str) -> SpeedName | None:
    """Return what a name says of sampling in few steps; None where it has no word of that."""
    text = _BASES.sub("", plain(name))
    for pattern, what in _TELLING.items():
        if re.search(rf"(?:^|_){pattern}(?=_|$|[a-z]*\d)", text):
            return SpeedName(what, telling=True)
    words = [word for word in text.split("_") if word]
    found = next((_ORDINARY[word] for word in words if word in _ORDINARY), None)
    if found is None:
        return None
    technical = all(
        word in _ORDINARY or _FAMILY.fullmatch(word) or _FILLING.fullmatch(word) for word in words
    )
    told = bool(_STEPS.search(text)) or (technical and any(_FAMILY.fullmatch(word) for word in words))
    return SpeedName(found, telling=told)


def plain(name: str) -> str:
    """Return a name in small letters, its words between underscores: `HighNoise v1.0` → `high_noise_v1_0`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")


# ------------------------------------------------------------------------ sliders, edit models

_SLIDER = re.compile(r"(?:^|_)sliders?(?=_|$)")
_TRAINED_AS = re.compile(r"(?:^|_)rank\d+_(?:no)?xattn(?=_|$)")
_EDIT = {
    "Kontext": re.compile(r"kontext"),
    "Qwen-Image-Edit": re.compile(r"qwen_?(?:image_?)?edit"),
    "HiDream-E1": re.compile(r"hidream_?e1"),
    "Step1X-Edit": re.compile(r"step1x_?edit"),
}


def slider_name(name: str) -> bool:
    """Tell whether a name says slider, or ends as the concept sliders' trainer writes it."""
    text = plain(name)
    return bool(_SLIDER.search(text) or _TRAINED_AS.search(text))


def edit_name(name: str) -> str:
    """Return the edit model that a name speaks of, "" for none."""
    text = plain(name)
    return next((what for what, pattern in _EDIT.items() if pattern.search(text)), "")


# ------------------------------------------------------------------------ noise levels of Wan 2.2

_EXPLICIT = re.compile(
    r"(?<![a-z])(high|low)(?=[-_ .]?noise)|(?<=noise)([-_ .]?)(high|low)(?![a-z])", re.IGNORECASE
)
_SHORT = re.compile(r"(?<![A-Za-z0-9])(high|low|[HL]N|[hl]n|[HL])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NoiseName:
    """A name that says for which noise level a LoRA is.

    level     "high" or "low"
    partner   the same name for the other level
    explicit  it speaks of noise, or says HIGH, LOW, HN or LN; otherwise it is a word or a lone letter
    """

    level: str
    partner: str
    explicit: bool


def noise_name(stem: str) -> NoiseName | None:
    """Return the noise level that a name speaks of and its partner's name; None where it says none."""
    return next(noise_names(stem), None)


def noise_names(stem: str) -> Iterator[NoiseName]:
    """Yield every way to read a name as one for a noise level, the likeliest first."""
    for pattern in (_EXPLICIT, _SHORT):
        for match in reversed(list(pattern.finditer(stem))):
            word = match[0]
            level = "high" if word.strip("-_ .")[0] in "hH" else "low"
            partner = f"{stem[: match.start()]}{_swapped(word)}{stem[match.end() :]}"
            explicit = pattern is _EXPLICIT or (len(word) > 1 and word.isupper())
            yield NoiseName(level, partner, explicit)


def for_level(stem: str, level: str) -> str:
    """Return a name for a noise level: words that beyond doubt name the other one are exchanged."""

    def exchanged(match: re.Match[str]) -> str:
        word = match[0]
        own = "high" if word.strip("-_ .")[0] in "hH" else "low"
        explicit = match.re is _EXPLICIT or (len(word) > 1 and word.isupper())
        return _swapped(word) if explicit and own != level else word

    return _SHORT.sub(exchanged, _EXPLICIT.sub(exchanged, stem))


def _swapped(word: str) -> str:
    """Return the word for the other level in the same letters: HIGH → LOW, High → Low, hn → ln."""
    body = word.lstrip("-_ .")
    other = {"high": "low", "low": "high", "hn": "ln", "ln": "hn", "h": "l", "l": "h"}[body.lower()]
    cased = other.upper() if body.isupper() else other.capitalize() if body[0].isupper() else other
    return word[: len(word) - len(body)] + cased


# ------------------------------------------------------------------------ epochs

_PADDED = re.compile(r"[-_](?=\d{6,9}$)0*(\d+)$")
_NOISE_END = re.compile(r"[-_ .]?(?:high|low)[-_ .]?noise$", re.IGNORECASE)
_NUMBERED = re.compile(r"[-_ .](?:epochs?|ep|e|steps?)[-_ ]?0*(\d{1,7})$", re.IGNORECASE)


def epoch_name(stem: str) -> tuple[str, int] | None:
    """Return (name of the run, number) of `NAME-000004`, `NAME-e5`, `NAME_step_1000`; None for others."""
    noise = _NOISE_END.search(stem)  # ai-toolkit: NAME_000000100_high_noise
    end = noise[0] if noise else ""
    stem = stem.removesuffix(end)
    found = _PADDED.search(stem) or _NUMBERED.search(stem)
    return (stem[: found.start()] + end, int(found[1])) if found else None
