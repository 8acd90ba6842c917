"""One LoRA saved anew at another rank, at another strength, under other names: what that gives, foreseen."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Annotated

from lib_merge.errors import RecipeError
from lib_merge.families import USUAL
from lib_merge.library.library import Item
from lib_merge.ui.desk import Desk, operation
from lib_merge.ui.planning import Outlook, outlook
from lib_merge.ui.protocol import About
from lib_merge.ui.state import Output, Precision, Rank, Row, TabState

LARGER = 1.05  # times the file's size from which a LoRA is said to grow


@dataclass(frozen=True, slots=True, kw_only=True)
class AnewRequest:
    """One LoRA and what it is to become."""

    key: Annotated[str, About("of the LoRA, as `loras` lists it", example="0/ink.safetensors")]
    rank: Annotated[Rank, About("lossless: as it is")] = field(default_factory=lambda: Rank(mode="lossless"))
    strength: Annotated[float, About("the new LoRA at 1 is the old one at this strength")] = 1.0
    blocks: Annotated[str, About("a list, a preset's name, or OUT00-OUT05=0.5,M00=1")] = ""
    names: Annotated[str, About("a spelling, or a host that must know them; empty: every host")] = ""
    precision: Precision = "fp16"
    template: Annotated[str, About("of the name; empty: one is made that says what is changed")] = ""
    folder: Annotated[str, About("below the first LoRA folder")] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNow:
    """The file as it is."""

    rank: Annotated[list[int], About("least and most of any module")]
    bytes: int
    kinds: Annotated[list[str], About("LoRA, LoHa, LoKr, …")]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnewReply:
    """What would be saved; nothing was written."""

    before: FileNow
    plan: Annotated[Outlook, About("the same estimate as of any merge: name, rank, bytes, exact or at most")]
    larger: Annotated[bool, About("the new file is larger than the one it is made of")]
    said: Annotated[list[str], About("what a person should know before saving")]
    state: Annotated[TabState, About("for `merge`, which saves it; the tab's own set-up is another")]


@operation("anew")
def anew(desk: Desk, request: AnewRequest) -> AnewReply:
    """Foresee size, rank and name of one LoRA that is resized, baked or converted."""
    item = next((one for one in desk.listed().items() if one.key == request.key), None)
    if item is None:
        message = "that LoRA is not in the LoRA folders any more: refresh the list."
        raise RecipeError(message)
    state = _state(desk, item, request)
    plan = outlook(desk, state)
    before = FileNow(rank=list(item.rank), bytes=item.size, kinds=list(item.kinds))
    return AnewReply(
        before=before,
        plan=plan,
        larger=plan.bytes > LARGER * item.size,
        said=_said(request, before, plan),
        state=state,
    )


def _state(desk: Desk, item: Item, request: AnewRequest) -> TabState:
    family = item.family or next(iter(item.candidates), "")
    blocks = desk.expand(request.blocks.strip(), family or USUAL, random.Random(0))
    row = Row(id=1, key=item.key, name=item.name, ratio=request.strength, blocks=blocks)
    return TabState(
        sources=[row],
        rank=request.rank,
        precision=request.precision,
        names=request.names,
        family="" if item.family else family,
        output=Output(template=request.template or template_of(request), folder=request.folder),
    )


def template_of(request: AnewRequest) -> str:
    """Return a name that says what is changed; `{rank}` becomes a rank that can come out."""
    parts = ["{sources}"]
    if request.rank.mode == "rank":
        parts.append("r{rank}")
    elif request.rank.mode not in ("lossless", "auto"):
        parts.append("{rank}")
    if request.strength != 1:
        parts.append(f"x{request.strength:g}")
    if request.blocks.strip():
        parts.append("baked")
    if request.names:
        parts.append(request.names)
    return f"{'_'.join(parts) if len(parts) > 1 else '{sources}_copy'}_v{{n}}"


def _said(request: AnewRequest, before: FileNow, plan: Outlook) -> list[str]:
    said = []
    asked, most = request.rank.value, plan.rank[1]
    if request.rank.mode == "rank" and asked is not None and 0 < most < asked:
        said.append(f"rank {asked:g} is more than this LoRA has: it comes out at rank {most}")
    if plan.bytes > LARGER * before.bytes:
        why = f", since {before.kinds[0]} becomes LoRA" if before.kinds and before.kinds[0] != "LoRA" else ""
        limit = "" if plan.exact else "at most "
        said.append(f"the file grows from {_megabytes(before.bytes)} to {limit}{_megabytes(plan.bytes)}{why}")
    return said


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 10_000_000 else f"{count / 1e6:.0f} MB"
