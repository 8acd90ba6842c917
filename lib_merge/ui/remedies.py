"""What mends a set-up that cannot be merged: a sentence in a person's words, and a change that was tried.

Every remedy was tried: the set-up with its edit is one that `plan` takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from lib_merge.blocks.weights import parse_elements
from lib_merge.engine.cancelling import NOTHING
from lib_merge.errors import MergeError, RecipeError
from lib_merge.files.names import NOT_ALLOWED
from lib_merge.kept.changes import title_of
from lib_merge.loaders import NAMINGS
from lib_merge.methods import DEFAULT_METHOD, METHODS, Method, Space, get_method
from lib_merge.methods.registry import Knob, Scope
from lib_merge.recipe_edits import letter
from lib_merge.ui.desk import Desk
from lib_merge.ui.protocol import About, sentence, write
from lib_merge.ui.state import Group, Rank, Row, TabState, knobs_of, policy_of

ROUNDS = 6  # faults that are mended together
LARGEST = 1e4  # of a ratio
PLAIN_RANK = 32
EVERY_HOST = "Use the names that every host loads"
_PICK = "pick a LoRA first"
_NONE = "there is no single change that mends it: change the sources or the settings by hand"
Check = Callable[[TabState], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change that mends a set-up."""

    label: Annotated[str, About("for the button", example="Let the method choose the rank")]
    edit: Annotated[
        dict[str, Any], About("fields of the set-up and their new values: state = {...state, ...edit}")
    ]


class Refusal(RecipeError):
    """A set-up that cannot be merged; `remedy` mends it, or `unmended` says why nothing does."""

    def __init__(self, message: str, remedy: Remedy | None, unmended: str) -> None:
        """Keep what mends it."""
        super().__init__(message)
        self.remedy, self.unmended = remedy, unmended

    def reply(self) -> dict[str, Any]:
        """Return the fields that a refusing reply has besides its sentence."""
        return {"remedy": write(self.remedy), "unmended": self.unmended}


@dataclass(frozen=True, slots=True)
class _Mended:
    """A set-up with one fault less; `said` where a person's words for the fault are known."""

    label: str
    state: TabState
    said: str = ""


def refusal(desk: Desk, state: TabState, error: MergeError, check: Check) -> Refusal:
    """Return a refusal with the first remedy that makes `check` pass; several faults are mended together.

    Args:
        desk: finds the files.
        state: what was refused.
        error: why.
        check: raises `MergeError` for what cannot be merged.
    """
    if not any(row.on and row.key for row in state.sources):
        return Refusal(sentence(error), None, _PICK)
    now, labels, said, why = state, list[str](), "", error
    for _ in range(ROUNDS):
        found = _best(desk, now, why, check)
        if found is None:
            break
        mended, left = found
        labels.append(mended.label)
        said = said or mended.said
        now = mended.state
        if left is None:
            label = labels[0] + "".join(f", {one[0].lower()}{one[1:]}" for one in labels[1:])
            return Refusal(said or _plain(state, error), Remedy(label=label, edit=_edit(state, now)), "")
        why = left
    return Refusal(said or _plain(state, error), None, _NONE)


def _best(
    desk: Desk, state: TabState, error: MergeError, check: Check
) -> tuple[_Mended, MergeError | None] | None:
    """Return the first change after which it passes, else the first known fault that is gone by one."""
    partly: tuple[_Mended, MergeError] | None = None
    for mended in (*_known(state), *_tried(desk, state, error)):
        left = _fault(check, mended.state)
        if left is None:
            return mended, None
        if partly is None and str(left) != str(error) and not mended.label.startswith("Leave "):
            partly = mended, left
    return partly


def _fault(check: Check, state: TabState) -> MergeError | None:
    try:
        check(state)
    except MergeError as error:
        return error
    return None


def _edit(before: TabState, after: TabState) -> dict[str, Any]:
    names = [one.name for one in fields(TabState)]
    return {
        name: write(getattr(after, name)) for name in names if getattr(after, name) != getattr(before, name)
    }


def _plain(state: TabState, error: MergeError) -> str:
    """Return an error's sentence with methods by their titles."""
    names = {state.method, *(group.method for group in state.groups.values())} & set(METHODS)
    text = sentence(error)
    for name in names:
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", METHODS[name].title, text)
    return text.replace("this recipe has", "there are").replace("knob ", "")


# -------------------------------------------------------------------------------------------- faults seen


def _known(state: TabState) -> Iterator[_Mended]:
    """Yield a change for every fault that the set-up itself shows, the most telling first."""
    yield from _method(state)
    yield from _rank(state)
    yield from _knobs(state)
    yield from _groups(state)
    yield from _numbers(state)
    yield from _rows(state)


def _count(state: TabState) -> int:
    used = [row for row in state.sources if row.on and row.key]
    return len({row.group for row in used if row.group}) + sum(not row.group for row in used)


def _method(state: TabState) -> Iterator[_Mended]:
    method, plain = METHODS.get(state.method), METHODS[DEFAULT_METHOD]
    label = f"Merge by {plain.title}"
    if method is None:
        yield _Mended(label, replace(state, method=plain.name), f"there is no method {state.method[:40]!r}.")
        return
    count = _count(state)
    if not method.takes(count):
        yield _Mended(label, replace(state, method=plain.name), _takes(method, count))
    elif method.roles:
        rows = _with_roles(state, method)
        if rows is not None and rows != state.sources:
            told = " and ".join(f"{letter(i)} is the {row.role}" for i, row in enumerate(rows) if row.role)
            said = f"{method.title} asks which source is the {' and which the '.join(method.roles)}."
            yield _Mended(f"Set: {told}", replace(state, sources=rows), said)
        yield _Mended(label, replace(state, method=plain.name))


def _takes(method: Method, count: int) -> str:
    least, most = method.sources
    takes = f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
    noun = "source" if takes == "1" else "sources"
    return f"{method.title} merges {takes} {noun}; there {'is' if count == 1 else 'are'} {count}."


def _with_roles(state: TabState, method: Method) -> list[Row] | None:
    """Return the rows with the method's roles in their order; None where groups stand in the way."""
    used = [row for row in state.sources if row.on and row.key]
    if any(row.group for row in used) or len(used) != len(method.roles):
        return None
    given = {id(row): role for row, role in zip(used, method.roles)}
    return [replace(row, role=given[id(row)]) if id(row) in given else row for row in state.sources]


def _rank(state: TabState) -> Iterator[_Mended]:
    method, rank = METHODS.get(state.method), state.rank
    automatic = replace(state, rank=Rank())
    if method is not None and method.space is Space.DENSE and rank.mode == "lossless":
        said = f"{method.title} cannot be saved without loss as a LoRA: it needs a rank."
        yield _Mended("Let the method choose the rank", automatic, said)
        cut = replace(state, rank=Rank(mode="rank", value=PLAIN_RANK))
        yield _Mended(f"Cut to rank {PLAIN_RANK}", cut, said)
    try:
        policy_of(rank)
    except MergeError:
        value = "nothing" if rank.value is None else f"{rank.value:g}"
        takes = {
            "rank": "a whole number from 1",
            "energy": "a share above 0, up to 1",
            "error": "a share above 0, below 1",
        }.get(rank.mode, "a size in MB")
        yield _Mended("Let the method choose the rank", automatic, f"the rank is {value}; it takes {takes}.")


def _mended_knobs(setup: TabState | Group, count: int) -> tuple[dict[str, dict[str, Any]], str] | None:
    """Return the settings with those of the method in their ranges, and the first that was not; None where
    all are.
    """
    method = METHODS.get(setup.method)
    if method is None:
        return None
    values, wrong = dict(setup.knobs.get(method.name, {})), ""
    known = {knob.name: knob for knob in method.knobs}
    for name in knobs_of(setup, method.name):
        knob = known.get(name)
        if knob is None or _fits(knob, values[name], count, method.name):
            continue
        wrong = wrong or name
        values[name] = _nearest(knob, values[name])
    return ({**setup.knobs, method.name: values}, wrong) if wrong else None


def _fits(knob: Knob, value: object, count: int, method: str) -> bool:
    single = not isinstance(value, list)
    if not single and (knob.scope is not Scope.SOURCE or len(value) != count):  # type: ignore[arg-type]
        return False
    try:
        for one in [value] if single else value:  # type: ignore[attr-defined]
            knob.check(one, method)
    except MergeError:
        return False
    return True


def _nearest(knob: Knob, value: object) -> Any:  # noqa: ANN401
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and isinstance(knob.default, (int, float)) and not isinstance(knob.default, bool):
        near = min(max(float(value), knob.minimum), knob.maximum)  # type: ignore[arg-type]
        return near if _fits(knob, near, 1, "") else knob.default
    return knob.default


def _knobs(state: TabState) -> Iterator[_Mended]:
    found = _mended_knobs(state, _count(state))
    if found is not None:
        knobs, name = found
        title = title_of(name)
        said = f"{title} of {get_method(state.method).title} has a value that it cannot have."
        yield _Mended(f"Set {title} to what it can be", replace(state, knobs=knobs), said)


def _groups(state: TabState) -> Iterator[_Mended]:
    for name in dict.fromkeys(row.group for row in state.sources if row.on and row.key and row.group):
        group = state.groups.get(name, Group())
        count = sum(row.on and bool(row.key) and row.group == name for row in state.sources)
        method, plain = METHODS.get(group.method), METHODS[DEFAULT_METHOD]
        changed, label, said = group, "", ""
        if method is None or not method.takes(count) or method.roles:
            changed, label = replace(group, method=plain.name), f"Merge group {name} by {plain.title}"
            said = f"group {name}: {_takes(method, count)}" if method and not method.takes(count) else ""
        elif (found := _mended_knobs(group, count)) is not None:
            changed, label = replace(group, knobs=found[0]), f"Set {title_of(found[1])} of group {name}"
        elif not abs(group.ratio) <= LARGEST:
            changed, label = replace(group, ratio=1.0), f"Set the ratio of group {name} to 1"
        if changed != group:
            yield _Mended(label, replace(state, groups={**state.groups, name: changed}), said)


def _numbers(state: TabState) -> Iterator[_Mended]:
    """Yield changes of settings out of their range."""
    wrong: Mapping[str, tuple[bool, Any, str]] = {
        "prune": (not 0 <= state.prune <= 1, 0.0, "Prune nothing"),
        "prune_below": (not 0 <= state.prune_below <= LARGEST, 0.0, "Prune nothing below a number"),
        "conv_rank": (
            state.conv_rank is not None and not 1 <= state.conv_rank <= 1 << 16,
            None,
            "Cut convolutions like the rest",
        ),
        "names": (
            bool(state.names) and state.names not in NAMINGS,
            "",
            "Use the names that every host loads",
        ),
    }
    for name, (is_wrong, value, label) in wrong.items():
        if is_wrong:
            said = f"{title_of(name)} has a value that it cannot have."
            yield _Mended(label, replace(state, **{name: value}), said)


def _rows(state: TabState) -> Iterator[_Mended]:
    for index, row in enumerate(state.sources):
        if not row.on or not row.key:
            continue
        te = row.te if isinstance(row.te, list) else [row.te]
        changed, label = row, ""
        if not abs(row.ratio) <= LARGEST:
            changed, label = replace(row, ratio=1.0), f"Set the ratio of {letter(index)} to 1"
        elif len(te) > 3 or any(value is not None and not abs(value) <= LARGEST for value in te):
            changed, label = (
                replace(row, te=None),
                f"Let the text encoder of {letter(index)} follow its ratio",
            )
        elif row.elements and _unreadable(row.elements):
            changed, label = replace(row, elements=""), f"Drop the element rules of {letter(index)}"
        if changed is not row:
            yield _Mended(label, _with_row(state, index, changed))


def _unreadable(rules: str) -> bool:
    try:
        return any(not abs(rule.ratio) <= LARGEST for rule in parse_elements(rules))
    except MergeError:
        return True


def _with_row(state: TabState, index: int, row: Row) -> TabState:
    return replace(state, sources=[*state.sources[:index], row, *state.sources[index + 1 :]])


# -------------------------------------------------------------------------------------------- faults tried


def _tried(desk: Desk, state: TabState, error: MergeError) -> Iterator[_Mended]:
    """Yield changes that may mend what only the files or the folders show."""
    yield from _output(state)
    if str(error) == NOTHING:
        rows = [replace(row, ratio=1.0, te=None, blocks={}) if row.on else row for row in state.sources]
        yield _Mended("Set every ratio to 1", replace(state, sources=rows))
    if state.family:
        yield _Mended("Let the files tell the base model", replace(state, family=""))
    items = {item.key: item for item in desk.library.items()}
    used = [(index, row) for index, row in enumerate(state.sources) if row.on and row.key]
    fitting = [items[row.key].candidates for _, row in used if row.key in items]
    for family in dict.fromkeys(name for names in fitting for name in names):
        if family != state.family and all(family in names for names in fitting):
            yield _Mended(f"Take them for {family}", replace(state, family=family))
    if state.names:
        yield _Mended(EVERY_HOST, replace(state, names=""))
    for index, row in reversed(used):
        if len(used) > 1:
            left = _with_row(state, index, replace(row, on=False))
            yield _Mended(f"Leave {letter(index)} out", left)
            yield from (
                replace(one, label=f"Leave {letter(index)} out, {one.label}") for one in _method(left)
            )


def _output(state: TabState) -> Iterator[_Mended]:
    output = state.output
    if output.folder:
        yield _Mended("Save in the LoRA folder itself", replace(state, output=replace(output, folder="")))
    template = re.sub(f"[{NOT_ALLOWED}]+", "_", output.template.removesuffix(".safetensors")).strip(" .")
    for label, name in (
        ("Take what no name can have out of it", template[:80]),
        ("Count its versions", f"{template[:80].replace('{n}', '')}_v{{n}}"),
        ("Name it after its sources", ""),
    ):
        if name != output.template:
            yield _Mended(label, replace(state, output=replace(output, template=name)))
