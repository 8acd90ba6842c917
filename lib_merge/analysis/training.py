"""What files say of their training, side by side, and where they should not be mixed unseen.

Metadata is free text that trainers, merging tools and people wrote: it is shown as it is, cut short, and
    only warns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from lib_merge import metadata
from lib_merge.analysis.measure import FileInfo
from lib_merge.analysis.model import Training, TrainingRow
from lib_merge.families import line_in_name

MAX_TEXT = 120
_PLACE = re.compile(r"^(?:[A-Za-z]:[\\/]|[\\/~]|\.{1,2}[\\/]|file:)|\\\\")
# the same in the middle of a sentence: a drive, a share, or a rooted path of two parts and more, up to its
# last separator
_WITHIN = re.compile(
    r"(?:(?<![A-Za-z])[A-Za-z]:[\\/]|\\\\|file:/+|(?<![\w.:/~])[~.]{0,2}/(?=[^\s/]+/))(?:[^,;|\"'<>]*[\\/])?"
)
WORDS = 6
Meta = Mapping[str, str]


def training(files: Sequence[FileInfo], ranks: Sequence[tuple[int, int]]) -> Training:
    """Return the table of training facts and its warnings.

    Args:
        files: per source.
        ranks: per source, (least, greatest) rank found in the tensors.
    """
    rows = []
    for field, title, read in _FIELDS:
        values = tuple(_short(read(file)) for file in files)
        if any(value is not None for value in values):
            rows.append(TrainingRow(field, title, values))
    held = tuple(f"{low}" if low == high else f"{low} to {high}" if high else None for low, high in ranks)
    rows.insert(min(len(rows), 3), TrainingRow("rank", "Rank in the file", held))
    return Training(tuple(rows), tuple(_warnings(files)))


def base_line(file: FileInfo) -> str | None:
    """Return the line of models that a file was trained on, where its base's name tells (Pony, Illustrious
    …).
    """
    for text in (
        file.metadata.get("ss_sd_model_name"),
        file.base,
        file.metadata.get("modelspec.hash_base_model"),
    ):
        line = line_in_name(text[:MAX_TEXT]) if text else None
        if line is not None:
            return line
    return None


def v_prediction(file: FileInfo) -> bool | None:
    """Tell whether a file was trained with v-prediction; None where it does not say."""
    for key in ("ss_v_parameterization", "ss_v_pred"):
        if key in file.metadata:
            return file.metadata[key].strip().lower() in ("true", "1", "yes")
    kind = file.metadata.get("modelspec.prediction_type", "").strip().lower()
    if kind:
        return kind in ("v", "v_prediction", "v-prediction")
    base = f"{file.metadata.get('ss_sd_model_name', '')} {file.base}"
    return True if re.search(r"v[-_ ]?pred", base, re.IGNORECASE) else None


def _key(*names: str) -> Callable[[FileInfo], str | None]:
    def read(file: FileInfo) -> str | None:
        for name in names:
            value = file.metadata.get(name)
            if value not in (None, "", "None", "null"):
                return value
        return None

    return read


def _base(file: FileInfo) -> str | None:
    return _key("ss_sd_model_name")(file) or file.base or None


def _epochs(file: FileInfo) -> str | None:
    now, last = _key("ss_epoch")(file), _key("ss_num_epochs")(file)
    return f"{now} of {last}" if now and last else now or last


def _prediction(file: FileInfo) -> str | None:
    velocity = v_prediction(file)
    return None if velocity is None else "v" if velocity else "epsilon"


def _resolution(file: FileInfo) -> str | None:
    text = _key("ss_resolution", "modelspec.resolution")(file)
    return re.sub(r"[()\s]", "", text).replace(",", " × ").replace("x", " × ") if text else None


def _alpha(file: FileInfo) -> str | None:
    return _key("ss_network_alpha")(file)


def _words(file: FileInfo) -> str | None:
    """Return the trigger phrase, or the tags that most captions have."""
    phrase = file.metadata.get("modelspec.trigger_phrase")
    if phrase:
        return phrase
    counts: dict[str, float] = {}
    for tags in metadata.read_tags(file.metadata).values():
        for tag, count in tags.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0.0) + count
    best = sorted(counts, key=lambda tag: -counts[tag])[:WORDS]
    return ", ".join(best) or None


def _algorithm(file: FileInfo) -> str | None:
    module = _key("ss_network_module")(file)
    try:
        arguments = json.loads(file.metadata.get("ss_network_args", "{}")[: 1 << 14])
    except (ValueError, RecursionError):
        arguments = None
    algorithm = arguments.get("algo") if isinstance(arguments, dict) else None
    return f"{module} ({algorithm})" if module and algorithm else module


_FIELDS: tuple[tuple[str, str, Callable[[FileInfo], str | None]], ...] = (
    ("base", "Base checkpoint", _base),
    ("line", "Line of models", base_line),
    ("version", "Base version", _key("ss_base_model_version", "modelspec.architecture")),
    ("dim", "Rank as trained", _key("ss_network_dim")),
    ("alpha", "Alpha as trained", _alpha),
    ("resolution", "Resolution", _resolution),
    ("prediction", "Prediction", _prediction),
    ("unet_lr", "Learning rate, UNet", _key("ss_unet_lr", "ss_learning_rate")),
    ("te_lr", "Learning rate, text encoder", _key("ss_text_encoder_lr")),
    ("epochs", "Epochs", _epochs),
    ("steps", "Steps", _key("ss_steps", "ss_max_train_steps")),
    ("images", "Training images", _key("ss_num_train_images")),
    ("optimizer", "Optimizer", _key("ss_optimizer")),
    ("scheduler", "Schedule", _key("ss_lr_scheduler")),
    ("clip_skip", "Clip skip", _key("ss_clip_skip")),
    ("noise_offset", "Noise offset", _key("ss_noise_offset")),
    ("seed", "Seed", _key("ss_seed")),
    ("module", "Trained with", _algorithm),
    ("trigger", "Trigger words", _words),
)


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    line = " ".join(str(text).split())
    if _PLACE.match(line):  # a place on the trainer's machine is nobody's business, the name in it is
        line = re.split(r"[\\/]", line.rstrip("\\/"))[-1]
    line = _WITHIN.sub("", line)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def _warnings(files: Sequence[FileInfo]) -> list[str]:
    said = []
    for what, read in (("line of models", base_line), ("base version", _version)):
        values = {file.label: read(file) for file in files}
        known = {label: value for label, value in values.items() if value is not None}
        if len(set(known.values())) > 1:
            each = ", ".join(f"{label}: {_short(value)}" for label, value in known.items())
            said.append(
                f"the sources come from another {what} ({each}): same keys, but they may not mix well"
            )
    kinds = {file.label: v_prediction(file) for file in files}
    if True in kinds.values() and any(kind is not True for kind in kinds.values()):
        with_v = ", ".join(label for label, kind in kinds.items() if kind)
        rest = ", ".join(label for label, kind in kinds.items() if not kind)
        said.append(
            f"{with_v} was trained with v-prediction and {rest} was not, or does not say: colours may break"
        )
    return said


def _version(file: FileInfo) -> str | None:
    text = _key("ss_base_model_version")(file)
    return text.lower() if text else None
