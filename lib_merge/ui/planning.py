"""What a merge would make and what may spoil it, from headers alone: the panel beside the rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lib_merge import metadata
from lib_merge.adapters import LoraFile
from lib_merge.analysis.aside import outside
from lib_merge.analysis.measure import file_info
from lib_merge.analysis.model import Advice
from lib_merge.analysis.normalised import normalised
from lib_merge.analysis.recognition import recognised
from lib_merge.analysis.training import training
from lib_merge.engine.cancelling import NOTHING
from lib_merge.engine.room import foreseen_names
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import Leaf, Tree, open_tree
from lib_merge.errors import MergeError, OutputError, RecipeError
from lib_merge.families import encoder_of
from lib_merge.kept.changes import differences
from lib_merge.loaders import HOSTS, Contents, lost_on_the_way, verdicts, written_in
from lib_merge.ranks.policy import SizeEstimate
from lib_merge.recipe_edits import letter
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.lineage import developed_from
from lib_merge.ui.naming import target_of
from lib_merge.ui.protocol import About
from lib_merge.ui.remedies import refusal
from lib_merge.ui.state import TabState, to_recipe
from lib_merge.ui.understanding import Changes

EDGE = 1 << 16
# a ratio between two sources from which a merge gets hard to predict
APART: Mapping[str, float] = {
    "rank": 8.0,
    "learning rate": 10.0,
    "training steps": 20.0,
    "strength (alpha / rank)": 8.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRequest:
    """Carries what is set up."""

    state: TabState


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A change of the set-up that `apply` carries out, and why."""

    title: str
    reason: str
    changes: Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a merge would make."""

    family: str
    encoders: Annotated[list[str], About("letters of the sources that change the text encoder")]
    modules: int
    emptied: Annotated[int, About("modules that weigh 0 in every source and stay out")]
    rank: Annotated[list[int], About("least and most of any module")]
    bytes: Annotated[int, About("of the file")]
    exact: Annotated[bool, About("ranks and bytes will be these; otherwise they are at most these")]
    cut: Annotated[bool, About("a rank policy, pruning or a budget may take something away")]
    estimate: Annotated[bool, About("not `exact`, as version 0.1 said it")]
    policy: Annotated[str, About("the rank policy in force", example="lossless")]
    name: Annotated[str, About("of the file", example="ink and mira.safetensors")]
    folder: Annotated[str, About("below the first LoRA folder")]
    exists: bool
    claimed: Annotated[str, About("key of another LoRA that answers to this name")]
    triggers: Annotated[str, About("trigger words of the sources")]
    notes: Annotated[list[str], About("what to know before saving")]
    loads_in: Annotated[
        dict[str, dict[str, Any]], About("host -> how many of the modules it will load, and why not")
    ]
    offers: Annotated[list[Offer], About("what to know before saving, and what to do about it")]
    based_on: Annotated[str, About("the entry that it is developed from, empty where no source is shared")]
    changes: Annotated[list[str], About("what differs from the merge it is based on")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReply:
    """What a merge would make."""

    plan: Outlook


@operation("plan", rest="POST /plan")
def plan(desk: Desk, request: StateRequest) -> PlanReply:
    """What a merge would make."""
    return PlanReply(plan=foreseen(desk, request.state))


def foreseen(desk: Desk, state: TabState, *, free: bool = False) -> Outlook:
    """Return what a merge would make.

    Args:
        desk: finds the files.
        state: what is set up.
        free: also refuse a name that is taken, unless it may be overwritten.
    Raises:
        Refusal: what keeps it from being merged, in one sentence, and what mends it.
    """

    def check(state: TabState) -> Outlook:
        planned = outlook(desk, state)
        if free and planned.exists and not state.output.overwrite:
            message = f"{planned.name} exists already; choose another name or allow overwriting."
            raise RecipeError(message)
        return planned

    try:
        return check(state)
    except MergeError as error:
        raise refusal(desk, state, error, check) from error


def outlook(desk: Desk, state: TabState) -> Outlook:
    """Return what a merge would make: name, family, modules, ranks, size, and what to know before saving.

    Of the files' tensors only as much is read as tells whether modules cancel each other.

    Raises:
        MergeError: what keeps it from being merged, in one sentence.
    """
    recipe = to_recipe(state, desk.library.resolve)
    target_of(desk, state.output, recipe)  # a name that cannot be is said before any file is opened
    based_on = developed_from(desk, state.output.based_on, recipe)
    with open_tree(recipe, desk.headers, drop_unsupported=True) as tree:
        node, size = tree.root, foresee(tree)
        if size.nothing:
            raise OutputError(NOTHING)
        names = foreseen_names(tree)
        sources = [Named(leaf.source.handle, leaf) for leaf in node.leaves()]
        words = metadata.trigger_words([(leaf.source, leaf.file.metadata) for leaf in node.leaves()])
        advised = [*outside(recipe, [recognised(one.file) for one in sources]), *normalised(tree)]
        notes = [*_missing(state), *cautions(sources), *_told(tree, size, advised), *_lost(desk, names, tree)]
        encoders = [source.letter for source in sources if _has_encoder(source.file)]
    target = target_of(desk, state.output, recipe, size.rank[1])
    return Outlook(
        family=node.family,
        encoders=encoders,
        modules=len(size.modules),
        emptied=size.emptied,
        rank=list(size.rank),
        bytes=size.bytes,
        exact=size.exact,
        cut=size.cut,
        estimate=not size.exact,
        policy=node.policy.text,
        name=target.name,
        folder=_shown_folder(desk, target.parent),
        exists=target.exists(),
        claimed=_claimed(desk, target),
        triggers=", ".join(words),
        notes=notes,
        loads_in={one.host: one.to_json() for one in verdicts(names)},
        offers=[
            Offer(title=advice.title, reason=advice.reason, changes=Changes(**advice.apply))
            for advice in advised
            if advice.apply
        ],
        based_on=based_on.id if based_on is not None else "",
        changes=[] if based_on is None else differences(based_on.recipe, node.recipe.to_json()),
    )


def _told(tree: Tree, size: SizeEstimate, advised: Sequence[Advice]) -> Iterator[str]:
    """Yield what tree, estimate and advice without a change say."""
    # of copies the cautions speak, with letters
    yield from (note for note in tree.root.notes if "more than once" not in note)
    yield from _left_out(tree)
    yield from (advice.reason for advice in advised if not advice.apply)
    if size.cancelled:
        yield _cancelled(size.cancelled)


def _cancelled(names: Sequence[str]) -> str:
    one = len(names) == 1
    return (
        f"{len(names)} {'module stays' if one else 'modules stay'} out: "
        f"the sources cancel each other in {'it' if one else 'them'} ({names[0]}{'' if one else ', …'})"
    )


def _lost(desk: Desk, names: Contents, tree: Tree) -> list[str]:
    """Return a sentence where the WebUI would load less of the merge than of its sources."""
    host = HOSTS.get(desk.host.loader)
    if host is None or names.family.name not in host.families:
        return []
    lost = lost_on_the_way(host, names, [written_in(file) for file in tree.files])
    if not lost:
        return []
    return [
        f"{host.title} would not load {len(lost)} of {len(names.modules)} modules ({lost[0]}, …), "
        f"although it loads them from a source: choose the names that {host.title} knows"
    ]


def _missing(state: TabState) -> list[str]:
    """Return a sentence for every row that is on and whose LoRA is gone: nobody may overlook that."""
    return [
        f"{letter(index)} ({row.name[:80]}) is missing: the merge is without it"
        for index, row in enumerate(state.sources)
        if row.on and row.name and not row.key
    ]


def _left_out(tree: Tree) -> list[str]:
    left = {file.name: len(file.left_out) for file in tree.files if file.left_out}
    return [
        f"{count} modules of {name} cannot be merged and will be left out" for name, count in left.items()
    ]


def _shown_folder(desk: Desk, folder: Path) -> str:
    with contextlib.suppress(ValueError):
        below = folder.relative_to(desk.host.lora_folders()[0]).as_posix()
        return "" if below == "." else below
    return folder.name


def _claimed(desk: Desk, target: Path) -> str:
    """Return the LoRA that already answers to the new name, unless it is the file to be replaced."""
    stem = target.stem.casefold()
    for item in desk.library.items():  # the WebUI's own list knows the last of several files of one name
        if item.name.casefold() == stem and desk.library.resolve(item.key) != target:
            return item.key
    other = desk.host.claims_name(target.stem)
    return "" if other is None or other == target else desk.library.key_of(other)


# ---------------------------------------------------------------- cautions


@dataclass(frozen=True, slots=True)
class Named:
    """A source as the tab shows it: its letter and its place in the planned tree."""

    letter: str
    leaf: Leaf

    @property
    def file(self) -> LoraFile:
        """The opened, settled file."""
        return self.leaf.file

    @property
    def label(self) -> str:
        """Letter and name, for sentences."""
        return f"{self.letter} ({self.file.path.stem})"


def cautions(sources: Sequence[Named]) -> list[str]:
    """Return what may spoil a merge of these sources.

    Args:
        sources: opened and settled, in the tab's order.
    """
    first: dict[Path, Named] = {}
    for source in sources:
        first.setdefault(source.file.path, source)
    once = list(first.values())
    return [*_same_file(sources), *_mixed(once), *_encoders(once), *_apart(once)]


def _same_file(sources: Sequence[Named]) -> list[str]:
    """Name copies: the same path more than once, or two files whose size, header and edges are alike."""
    rows: dict[Path, list[Named]] = {}
    for source in sources:
        rows.setdefault(source.file.path, []).append(source)
    notes = [
        f"{_and([one.letter for one in same])} are the same file: their ratios add up"
        for same in rows.values()
        if len(same) > 1
    ]
    once = [same[0] for same in rows.values()]
    for index, one in enumerate(once):
        for other in once[:index]:
            if _alike(one.file, other.file):
                notes.append(
                    f"{other.label} and {one.label} are copies of the same file: their ratios add up"
                )
    return notes


def _alike(one: LoraFile, other: LoraFile) -> bool:
    if one.size != other.size:
        return False
    names = ("sshs_model_hash", "modelspec.hash_sha256")
    hashes = [(one.metadata.get(name), other.metadata.get(name)) for name in names]
    if any(a and b and a != b for a, b in hashes):
        return False
    return _edges(one) == _edges(other)


def _edges(file: LoraFile) -> bytes:
    """Return the last bytes of a file: of the same length and layout, only copies end alike."""
    try:
        with file.path.open("rb") as handle:
            handle.seek(max(0, file.size - EDGE))
            return handle.read(EDGE)
    except OSError:
        return file.path.as_posix().encode()


def _mixed(sources: Sequence[Named]) -> list[str]:
    """Return what the analysis says of other lines of models and of v-prediction."""
    files = [file_info(source.leaf, source.label) for source in sources]
    return list(training(files, [(0, 0)] * len(files)).warnings)


def _encoders(sources: Sequence[Named]) -> list[str]:
    has = {source.letter: _has_encoder(source.file) for source in sources}
    with_, without = [name for name in has if has[name]], [name for name in has if not has[name]]
    if not with_ or not without:
        return []
    return [
        f"{_and(with_)} {'has' if len(with_) == 1 else 'have'} text-encoder weights, {_and(without)} "
        f"{'has' if len(without) == 1 else 'have'} none: trigger words may answer unevenly"
    ]


def _has_encoder(file: LoraFile) -> bool:
    return any(encoder_of(name) for name in file.modules)


def _apart(sources: Sequence[Named]) -> list[str]:
    notes = []
    for what, read in _MEASURES.items():
        values = [(value, s.letter) for s in sources if (value := read(s.file)) is not None and value > 0]
        if len(values) < 2:
            continue
        (low, one), (high, other) = min(values), max(values)
        if high >= APART[what] * low:
            notes.append(f"trained very differently: {what} {high:g} in {other}, {low:g} in {one}")
    return notes


def _rank(file: LoraFile) -> float | None:
    ranks = sorted(module.layout.rank for module in file.modules.values() if module.layout.rank)
    return float(ranks[len(ranks) // 2]) if ranks else None


def _noted(*names: str) -> Callable[[LoraFile], float | None]:
    def read(file: LoraFile) -> float | None:
        for name in names:
            try:
                value = float(file.metadata[name])
            except (KeyError, ValueError):
                continue
            if math.isfinite(value):
                return value
        return None

    return read


def _strength(file: LoraFile) -> float | None:
    alpha, rank = _noted("ss_network_alpha")(file), _noted("ss_network_dim")(file)
    return alpha / rank if alpha and rank else None


_MEASURES: Mapping[str, Callable[[LoraFile], float | None]] = {
    "rank": _rank,
    "strength (alpha / rank)": _strength,
    "learning rate": _noted("ss_unet_lr", "ss_learning_rate"),
    "training steps": _noted("ss_steps", "ss_max_train_steps"),
}


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
