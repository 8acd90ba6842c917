"""Kinds whose weight change is a function of the base weight, and what to tell the user about each.

Without the checkpoint their ΔW is unknown, and adding their numbers as if they were a LoRA's gives another
picture; so they are refused by name instead of merged wrongly.
"""

from __future__ import annotations

from collections.abc import Collection

_RULES: tuple[tuple[str, frozenset[str]], ...] = (
    ("DoRA", frozenset({"dora_scale"})),
    ("BOFT or OFT", frozenset({"oft_blocks", "oft_diag", "boft_blocks"})),
    ("IA3", frozenset({"ia3_weight", "on_input"})),
    ("GLoRA", frozenset({"a1", "a2", "b1", "b2", "bm"})),
    ("weight replacement", frozenset({"set_weight"})),
    ("resized control LoRA", frozenset({"reshape_weight"})),
    ("LyCORIS sparse bias", frozenset({"bias_indices", "bias_values", "bias_size"})),
    ("scaled fp8", frozenset({"weight_scale"})),
)


def refusal(roles: Collection[str]) -> str | None:
    """Return the name of the kind that cannot be merged without its base model, or None."""
    for kind, marks in _RULES:
        if not marks.isdisjoint(roles):
            return kind
    return None
