"""A strength that changes over the steps, as it stands in `<merge:NAME:…>`.

    0.8@0-0.5                 0.8 in the first half of the steps, 0 otherwise
    0.8@0-0.3,0.4@0.7-1       several such windows
    0.2@0,0.8@0.5,0@1         points with straight lines between them, constant before the first and after the
                              last, as LoRA Control (cheald/sd-webui-loractl) and SD.Next write it
    1@0,1@10,0@10             places above 1 count steps: @10 is when ten steps are done; a place given twice
                              is a jump

A place is a share of the steps of a pass: 0 is its first step, 1 its last. Hires fix is a pass of its own.
LoRA Control reads the same curve from the WebUI's counter, which counts a step when it is done: each of its
strengths comes one step later than here.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass

from lib_merge.errors import RecipeError
from lib_merge.recipe import check_number

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_PLACE = r"(?:\d+\.?\d*|\.\d+)"
_PIECE = re.compile(rf"\s*({_NUMBER})\s*@\s*({_PLACE})(?:\s*-\s*({_PLACE}))?\s*")
HOW = "write 0.8@0-0.5 for a part of the steps, or points as 0.2@0,0.8@0.5,0@1"


@dataclass(frozen=True, slots=True)
class Curve:
    """A strength over the steps of a pass: windows, or points with lines between them.

    windows  (from, until, strength); `until` does not belong to it, except the last step
    points   (place, strength) in order
    counted  places are numbers of steps, not shares
    """

    windows: tuple[tuple[float, float, float], ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    counted: bool = False

    def at(self, step: int, steps: int) -> float:
        """Return the strength at a step.

        Args:
            step: how many steps are done, from 0.
            steps: of the pass.
        """
        place = float(step) if self.counted else step / (steps - 1) if steps > 1 else 0.0
        if not self.counted:
            place = min(place, 1.0)
        if self.windows:
            inside = (
                strength
                for start, end, strength in self.windows
                if start <= place and (place < end or (end == place == 1.0 and not self.counted))
            )
            return next(inside, 0.0)
        after = bisect_right([one for one, _ in self.points], place)
        if after in (0, len(self.points)):
            return self.points[max(0, after - 1)][1]
        (left, low), (right, high) = self.points[after - 1], self.points[after]
        return low + (high - low) * (place - left) / (right - left)


def read_curve(text: str) -> Curve:
    """Read a strength over the steps.

    Raises:
        RecipeError: it is none, or windows overlap.
    """
    windows, points = [], []
    for piece in re.split(r"[,;]", text):
        match = _PIECE.fullmatch(piece)
        if match is None:
            message = f"the strength {text!r} is no strength over the steps: {HOW}."
            raise RecipeError(message)
        strength, start = float(match[1]), float(match[2])
        check_number(f"the strength in {text!r}", strength)
        if match[3] is None:
            points.append((start, strength))
        else:
            windows.append((start, float(match[3]), strength))
    if windows and points:
        message = f"the strength {text!r} mixes parts of the steps with points: {HOW}."
        raise RecipeError(message)
    if len(points) == 1:
        place, strength = points[0]
        part = f"{place:g}-1 from there on" if place < 1 else f"0-{place:g} until there"
        message = (
            f"the strength {text!r} has one point and no line: write {strength:g} for all steps, or "
            f"{strength:g}@{part}."
        )
        raise RecipeError(message)
    windows.sort()
    for (start, end, _), following in zip(windows, [*windows[1:], (math.inf, 0.0, 0.0)]):
        if end <= start or following[0] < end:
            message = f"the parts of the steps in {text!r} are empty or overlap: {HOW}."
            raise RecipeError(message)
    points.sort(key=lambda point: point[0])
    most = max(place for piece in (*windows, *points) for place in (piece[:2] if windows else piece[:1]))
    return Curve(tuple(windows), tuple(points), counted=most > 1)


# -------------------------------------------------------------------------------------------- in a tag


def split_strengths(arguments: str) -> tuple[str, Curve | None]:
    """Return what a `<lora:…>` tag takes at the start of a generation, and the denoiser's curve.

    The text encoder reads the prompt once, before the first step: it has the strength of the first step, or
    its own (`te=1:unet=0.8@0-0.5`, `1:0.8@0-0.5`). The denoiser begins at 0 and is set at every step.

    Args:
        arguments: what follows the name in a tag, `:0.8` or `:te=1:unet=0.5`; "" is `:1`.
    Raises:
        RecipeError: a strength that cannot be read, or a curve for the text encoder alone.
    """
    if "@" not in arguments:
        return arguments or ":1", None
    items = arguments.split(":")[1:]
    named = dict(item.split("=", 1) for item in items if "=" in item)
    positional = [item for item in items if "=" not in item]
    te = named.pop("te", positional[0] if positional else "1")
    unet = named.pop("unet", positional[1] if len(positional) > 1 else None)
    if "@" in te and unet is not None:
        message = (
            f"the text encoder has {te!r}, but it reads the prompt once, before the first step: give it one "
            "number."
        )
        raise RecipeError(message)
    curve = read_curve(te if unet is None else unet)
    first = f"{curve.at(0, 1):.6g}" if unet is None else te
    rest = [f"dyn={item}" for item in positional[2:3]] + [f"{name}={value}" for name, value in named.items()]
    if any("@" in item for item in rest):
        message = f"the strength {':'.join(rest)!r} is none: a curve is for the denoiser, in every pass anew."
        raise RecipeError(message)
    return ":" + ":".join([f"te={first}", "unet=0", *rest]), curve
