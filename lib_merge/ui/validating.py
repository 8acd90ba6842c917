"""The validation of a merge: five steps that fill themselves where they can, and ten test prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lib_merge.errors import RecipeError
from lib_merge.kept.history import Entry
from lib_merge.loaders import HOSTS
from lib_merge.ui.comparing import alike
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.keeping import Verdict
from lib_merge.ui.protocol import About, fields_of, read
from lib_merge.ui.understanding import EntryRequest

Step = Literal["loads", "pictures", "strengths", "prompts", "speed"]
StepState = Literal["passed", "failed", "open"]
MergeState = Literal["validated", "revise", "open"]
STRENGTHS = 3  # different strengths that are a range
UNUSUAL = 3  # test prompts of extremes that are enough
SLOWER = 1.1  # times the stack's time that still counts as no slower
_LABEL = 60  # characters of a prompt that a comparison keeps
_STRENGTH = re.compile(r"merge × ([0-9.]+)")

STEPS: Mapping[Step, tuple[str, str]] = {
    "loads": ("It loads", "Every module is one that the WebUI knows."),
    "pictures": ("Pictures were looked at", "Sources, stack and merge side by side, and a verdict on them."),
    "strengths": ("A range of strengths", f"At {STRENGTHS} strengths or more, 1 among them."),
    "prompts": (
        "Unusual prompts",
        "Empty, conflicting, long, another style: what it was not made for.",
    ),
    "speed": ("As fast as the stack", "Seconds to load and per picture, beside the sources as a stack."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TestPrompt:
    """A prompt to test merges with; `{trigger}` stands for the trigger words."""

    family: Annotated[str, About("what it tests", example="portrait")]
    text: str
    negative: Annotated[str, About("what is to be kept out")] = ""
    extreme: Annotated[bool, About("beyond what the merge was made for")] = False


_LONG = (
    "{trigger}, a crowded harbour market at dawn, fishing boats with patched sails, baskets of oranges and "
    "silver fish, a brass band in blue coats, wet cobblestones that mirror lanterns, gulls, ropes, barrels, "
    "a tiled clock tower in the mist, children with paper kites, steam from a tea stall, far mountains, "
    "long shadows, many small details everywhere"
)
TEST_PROMPTS = (
    TestPrompt(family="portrait", text="{trigger}, head and shoulders, facing the viewer, grey backdrop"),
    TestPrompt(family="full body", text="{trigger}, whole figure, standing on a bridge, overcast day"),
    TestPrompt(family="landscape", text="{trigger}, wide valley with a river, one tiny figure far away"),
    TestPrompt(family="action", text="{trigger}, jumping over a puddle, seen from below, evening light"),
    TestPrompt(family="other style", text="{trigger}, as a woodcut print in two colours", extreme=True),
    TestPrompt(family="without trigger", text="a teapot and two cups on a wooden table"),
    TestPrompt(family="empty", text="{empty}", extreme=True),
    TestPrompt(
        family="conflicting", text="{trigger}, bright noon, pitch-dark night, indoors, open sea", extreme=True
    ),
    TestPrompt(family="long", text=_LONG, extreme=True),
    TestPrompt(
        family="negative",
        text="{trigger}, sitting by a window",
        negative="{trigger}, window, person, face",
        extreme=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestPromptsReply:
    """The ten test prompts, the usual ones first and the extremes among them."""

    prompts: list[TestPrompt]
    lines: Annotated[str, About("the same as the comparison's field of prompts takes them, one a line")]


@operation("test_prompts")
def test_prompts(desk: Desk) -> TestPromptsReply:
    """Return ten test prompts, extremes among them."""
    del desk
    return TestPromptsReply(prompts=list(TEST_PROMPTS), lines="\n".join(lines()))


def lines() -> Iterator[str]:
    """Yield the test prompts as a comparison reads them: `{empty}` for none, `{negative}` before what is kept
    out.
    """
    for one in TEST_PROMPTS:
        yield f"{one.text} {{negative}} {one.negative}" if one.negative else one.text


# -------------------------------------------------------------------------------------------- the checklist


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReply:
    """One step of the checklist."""

    step: Step
    title: str
    asks: Annotated[str, About("what is to be seen")]
    state: StepState
    by: Annotated[Literal["", "itself", "hand"], About("who has said so; a hand's word counts more")]
    said: Annotated[str, About("what is known, empty where nothing is")]
    note: Annotated[str, About("what the person wrote")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReply:
    """How far a merge is validated."""

    entry: str
    state: Annotated[MergeState, About("validated: every step passed; revise: one failed")]
    steps: list[StepReply]


@operation("validation")
def validation(desk: Desk, request: EntryRequest) -> ValidationReply:
    """Return the checklist of a merge, filled in as far as anything is known."""
    return checklist(desk, desk.history.get(request.entry))


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSetRequest:
    """A step that is ticked by hand."""

    entry: str
    step: Step
    mark: Annotated[StepState | None, About("null takes the hand's word back")] = None
    note: Annotated[str, About(most=10_000)] = ""


@operation("validation_set")
def validation_set(desk: Desk, request: ValidationSetRequest) -> ValidationReply:
    """Tick a step of the checklist by hand, or take that back; a merge that failed one is to be revised."""
    entry = desk.history.get(request.entry)
    said = None if request.mark is None else {"state": request.mark, "note": request.note}
    desk.validations.put(entry.id, request.step, said)
    reply = checklist(desk, entry)
    if entry.status in ("ok", "revise") and reply.state != "open":
        desk.history.update(entry.id, status="revise" if reply.state == "revise" else "ok")
    return reply


def checklist(
    desk: Desk, entry: Entry, compared: Sequence[Mapping[str, Any]] | None = None
) -> ValidationReply:
    """Return the five steps of a merge: the person's word where there is one, else what is known.

    Args:
        desk: history, ticks, comparisons.
        entry: the merge.
        compared: every comparison, where they are read already.
    """
    ticked = desk.validations.of(entry.id)
    if compared is None:
        compared = list(_compared(desk))
    seen = [one for one in compared if one["id"] == entry.grid or _columns(one, entry)]
    known: dict[Step, tuple[StepState, str]] = {
        "loads": _loads(desk, entry),
        "pictures": _pictures(entry, seen),
        "strengths": _strengths(entry, seen),
        "prompts": _prompts(seen),
        "speed": _speed(entry, seen),
    }
    steps = [_step(step, known[step], ticked.get(step)) for step in STEPS]
    states = {step.state for step in steps}
    state: MergeState = "revise" if "failed" in states else "open" if "open" in states else "validated"
    return ValidationReply(entry=entry.id, state=state, steps=steps)


def _compared(desk: Desk) -> Iterator[Mapping[str, Any]]:
    """Yield every comparison that can be read."""
    for identity in desk.comparisons.ids():
        try:
            yield desk.comparisons.get(identity)
        except RecipeError:
            continue


def _step(step: Step, known: tuple[StepState, str], ticked: Mapping[str, Any] | None) -> StepReply:
    title, asks = STEPS[step]
    state, said = known
    by: Literal["", "itself", "hand"] = "" if state == "open" else "itself"
    if ticked is not None and ticked.get("state") in ("passed", "failed", "open"):
        state, by = ticked["state"], "hand"
    note = str((ticked or {}).get("note") or "")
    return StepReply(step=step, title=title, asks=asks, state=state, by=by, said=said, note=note)


def _loads(desk: Desk, entry: Entry) -> tuple[StepState, str]:
    found = entry.report.get("loads_in")
    hosts = {name: one for name, one in (found or {}).items() if isinstance(one, Mapping)}
    told = [
        f"{one.get('title', name)} loads {one['loaded']} of {one['total']} modules"
        for name, one in hosts.items()
        if one.get("loaded") is not None and one.get("total")
    ]
    here = hosts.get(desk.host.loader) if desk.host.loader in HOSTS else None
    asked = [here] if here is not None else list(hosts.values())
    if not told or not asked:
        return "open", ""
    whole = [one.get("loaded") == one.get("total") for one in asked]
    if all(whole):
        return "passed", "; ".join(told)
    # where nobody knows which program is meant, one that loses something is no failure
    return ("failed" if here is not None else "open"), "; ".join(told)


def _pictures(entry: Entry, seen: Sequence[Mapping[str, Any]]) -> tuple[StepState, str]:
    if entry.verdict and _judged(entry).failed:
        return "failed", "your verdict: to revise"
    if entry.verdict and (entry.grid or seen):
        return "passed", "compared, and a verdict written down"
    return "open", "compared; a verdict is missing" if seen else ""


def _judged(entry: Entry) -> Verdict:
    known = {name: value for name, value in entry.verdict.items() if name in fields_of(Verdict)}
    try:
        return read(Verdict, known)
    except RecipeError:  # of another version
        return Verdict(decision="next" if entry.status == "revise" else "")


def _strengths(entry: Entry, seen: Sequence[Mapping[str, Any]]) -> tuple[StepState, str]:
    found: set[float] = set()
    for one in seen:
        for column in _columns(one, entry):
            match = _STRENGTH.fullmatch(str(column.get("label")))
            found.add(float(match[1]) if match else 1.0)
    told = f"seen at {', '.join(f'{value:g}' for value in sorted(found))}" if found else ""
    return ("passed" if len(found) >= STRENGTHS and 1.0 in found else "open"), told


def _prompts(seen: Sequence[Mapping[str, Any]]) -> tuple[StepState, str]:
    rows = [str(label) for one in seen for label in one.get("rows") or ()]
    found = [one.family for one in TEST_PROMPTS if one.extreme and any(_is_row(one, row) for row in rows)]
    told = f"seen: {', '.join(found)}" if found else ""
    return ("passed" if len(found) >= UNUSUAL else "open"), told


def _is_row(prompt: TestPrompt, row: str) -> bool:
    """Tell whether a row of a comparison, named by its prompt's first characters, is a test prompt's."""
    if prompt.text == "{empty}":
        return row.startswith("(empty)")
    rest = prompt.text.removeprefix("{trigger}, ")
    return any(rest[:length] in row for length in (len(rest), 24) if length)


def _speed(entry: Entry, seen: Sequence[Mapping[str, Any]]) -> tuple[StepState, str]:
    for one in seen:
        labels = {column.get("label") for column in _columns(one, entry)}
        figures = [figure for figure in one.get("figures") or () if isinstance(figure, Mapping)]
        merged = next((figure for figure in figures if figure.get("column") in labels), None)
        stack = next((figure for figure in figures if figure.get("kind") == "stack"), None)
        if merged is None or stack is None:
            continue
        given = [figure.get(name) for name in ("load", "seconds") for figure in (merged, stack)]
        if not all(isinstance(value, (int, float)) for value in given):
            continue
        load, stack_load, each, stack_each = (float(value) for value in given if value is not None)
        told = (
            f"{load:.2f} s to load against {stack_load:.2f} s of the stack, "
            f"{each:.1f} s a picture against {stack_each:.1f} s"
        )
        return ("passed" if load <= SLOWER * stack_load and each <= SLOWER * stack_each else "open"), told
    return "open", ""


def _columns(comparison: Mapping[str, Any], entry: Entry) -> list[Mapping[str, Any]]:
    """Return the columns of a comparison that are this merge."""
    columns = [one for one in comparison.get("columns") or () if isinstance(one, Mapping)]
    return [
        one
        for one in columns
        if one.get("kind") in ("merge", "variant")
        and one.get("recipe")
        and alike(entry.recipe, one["recipe"])
    ]


# -------------------------------------------------------------------------------------------- the whole list


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationsRequest:
    """Names merges of the history."""

    entries: Annotated[list[str], About("their ids", most=10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationsReply:
    """How far merges are validated."""

    states: Annotated[dict[str, MergeState], About("by id; nothing of one that is not there")]


@operation("validations")
def validations(desk: Desk, request: ValidationsRequest) -> ValidationsReply:
    """Return how far merges are validated; those that cannot be looked at are open."""
    wanted = set(request.entries)
    compared = list(_compared(desk))
    states: dict[str, MergeState] = {}
    for entry in desk.history.list(""):
        if entry.id not in wanted:
            continue
        try:
            states[entry.id] = checklist(desk, entry, compared).state
        except RecipeError:
            states[entry.id] = "open"
    return ValidationsReply(states=states)
