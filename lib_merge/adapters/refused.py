"""Kinds whose weight change is a function of the base weight and that nothing here can build yet.

Without the checkpoint their ΔW is unknown, and adding their numbers as if they were a LoRA's gives another
picture; so they are refused by name instead of merged wrongly. One that can be built gets a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lib_merge.adapters.kind import Ending, Kind


@dataclass(frozen=True, eq=False)
class Refused(Kind):
    """A kind that is known by its tensors and cannot be merged; see `Kind`."""

    name: str
    endings: Mapping[str, Ending]
    marks: frozenset[str]
    only_beside: Mapping[str, str] = field(default_factory=dict)
    needs_base: bool = True


# what adapter weights are called whose keys no kind reads
UNREAD = "LoRA weights of unknown meaning"


def refusal(file: str, kinds: Mapping[str, int], first: str) -> str:
    """Return the sentence that refuses a file for what cannot be merged in it.

    Args:
        file: its name.
        kinds: kind -> how many modules; `UNREAD` -> how many keys.
        first: a key that is not read, if there is one.
    """
    known = [f"{count} {kind} modules" for kind, count in kinds.items() if kind != UNREAD]
    reasons = []
    if known:
        depends = "this kind depends on the base model and cannot be merged from the file alone"
        reasons.append(f"{' and '.join(known)}: {depends}")
    if UNREAD in kinds:
        reasons.append(f"{kinds[UNREAD]} {UNREAD} ({first}): a merge without them would be another LoRA")
    return f"{file} has {', and '.join(reasons)}; --drop_unsupported merges the rest."


def _lycoris(*names: str, end: str = "") -> dict[str, Ending]:
    return {f"{name}{end}": Ending(name, "LyCORIS") for name in names}


REFUSED = (
    Refused(
        "DoRA",
        {
            "dora_scale": Ending("dora_scale"),
            "lora_magnitude_vector": Ending("dora_scale", "PEFT"),
            "lora_magnitude_vector.weight": Ending("dora_scale", "PEFT"),
        },
        frozenset({"dora_scale"}),
    ),
    Refused(
        "BOFT or OFT",
        {
            **_lycoris("oft_blocks", "boft_blocks", "rescale"),
            **{f"{name}.weight": Ending(name, "PEFT") for name in ("oft_R", "boft_R", "boft_s")},
        },
        frozenset({"oft_blocks", "boft_blocks", "oft_R", "boft_R", "boft_s"}),
    ),
    Refused("OFT", {"oft_diag": Ending("oft_diag", "kohya")}, frozenset({"oft_diag"})),
    Refused(
        "IA3",
        {**_lycoris("on_input"), "weight": Ending("ia3_weight", "LyCORIS")},
        frozenset({"ia3_weight", "on_input"}),
        only_beside={"ia3_weight": "on_input"},
    ),
    Refused(
        "GLoRA",
        _lycoris("a1", "a2", "b1", "b2", "bm", end=".weight"),
        frozenset({"a1", "a2", "b1", "b2", "bm"}),
    ),
    Refused(
        "weight replacement",
        {"set_weight": Ending("set_weight"), "scale": Ending("set_weight")},
        frozenset({"set_weight"}),
    ),
    Refused(
        "resized control LoRA",
        {"reshape_weight": Ending("reshape_weight")},
        frozenset({"reshape_weight"}),
    ),
    Refused(
        "LyCORIS sparse bias",
        _lycoris("bias_indices", "bias_values", "bias_size"),
        frozenset({"bias_indices", "bias_values", "bias_size"}),
    ),
    Refused(
        "scaled fp8",
        {"weight_scale": Ending("weight_scale"), "scale_weight": Ending("weight_scale")},
        frozenset({"weight_scale"}),
    ),
)
