"""Setting the strength of live merges at every step, where a WebUI can.

A1111 looks at its networks' multipliers in every forward: they are set. Forge and its relatives bake LoRAs
into the model before the first step: whenever a strength changes, the model without the merge is patched
anew, which takes as long as loading a LoRA does there. Nothing is approximated: where neither is possible,
the curve is refused.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_merge.errors import RecipeError
from lib_merge.webui import lora_code
from lib_merge.webui.live.curves import Curve

log = logging.getLogger("lib_merge")
# how many steps it takes is known when it has ended
UNCOUNTED = ("DPM adaptive",)


@dataclass(frozen=True, slots=True)
class Course:
    """A live merge whose strength changes over the steps.

    name   in the WebUI's table
    path   its file
    curve  strength of the denoiser
    """

    name: str
    path: Path
    curve: Curve


@dataclass(slots=True)
class Stepper:
    """What is set now in one generation.

    changes  how often the model was patched anew, and the seconds that took
    """

    changes: int = 0
    seconds: float = 0.0
    _base: Any = None
    _ours: Any = None
    _now: dict[str, float] = field(default_factory=dict)

    def set(self, params: Any, p: Any, courses: Mapping[str, Course]) -> None:  # noqa: ANN401
        """Give every merge its strength for the step that comes.

        Args:
            params: what the WebUI tells its `cfg_denoiser` callbacks.
            p: its processing object.
            courses: name -> the merge and its curve.
        """
        step, steps = position(params)
        strengths = {name: course.curve.at(step, steps) for name, course in courses.items()}
        if getattr(p.sd_model, "forge_objects", None) is None:
            _set_multipliers(strengths)
        else:
            self._patch(p.sd_model, params.x, courses, strengths)

    def _patch(
        self,
        model: Any,  # noqa: ANN401
        x: Any,  # noqa: ANN401
        courses: Mapping[str, Course],
        strengths: dict[str, float],
    ) -> None:
        objects = model.forge_objects
        if objects.unet is not self._ours:  # a new pass: the WebUI has put its own there
            self._base = objects.unet
            self._now = dict.fromkeys(strengths, 0.0)
        if strengths == self._now:
            return
        begun = time.perf_counter()
        unet = self._base
        for name, strength in strengths.items():
            if strength:
                unet = _with_lora(unet, model, courses[name].path, strength)
        if unet is self._base:
            unet = unet.clone()
        objects.unet = self._ours = unet
        self._now = strengths
        _preparing()(unet, x)
        self.changes += 1
        self.seconds += time.perf_counter() - begun

    @property
    def said(self) -> str:
        """What it cost, in one sentence; "" where it cost nothing."""
        if not self.changes:
            return ""
        return (
            f"LoRA Merge: the strength over the steps patched the model {self.changes} "
            f"time{'s' if self.changes > 1 else ''} anew, in {self.seconds:.1f} s."
        )


def position(params: Any) -> tuple[int, int]:  # noqa: ANN401
    """Return (steps done, steps of the pass) at a call of the denoiser.

    A sampler of second order calls twice in a step; both calls have the strength of the step.
    """
    steps = max(1, int(params.total_sampling_steps or 1))
    denoiser = params.denoiser
    calls = int(getattr(denoiser, "total_steps", None) or steps)
    return min(int(denoiser.step) // max(1, round(calls / steps)), steps - 1), steps


def check(p: Any) -> None:  # noqa: ANN401
    """Raise `RecipeError` where strengths cannot be set at every step."""
    samplers = {getattr(p, "sampler_name", None), getattr(p, "hr_sampler_name", None)}
    adaptive = samplers.intersection(UNCOUNTED)
    if adaptive:
        message = (
            f"the sampler {adaptive.pop()} has no fixed number of steps: choose another for this strength."
        )
        raise RecipeError(message)
    model = getattr(p, "sd_model", None)
    if getattr(model, "forge_objects", None) is not None:
        if not callable(getattr(lora_code.tables(), "load_lora_for_models", None)) or _nunchaku():
            message = (
                "the strength of a LoRA cannot change over the steps with this checkpoint in this WebUI."
            )
            raise RecipeError(message)
        _preparing()
        return
    network = importlib.import_module("network")
    if isinstance(inspect.getattr_static(network.Network, "unet_multiplier", None), property):
        message = (
            "another extension (LoRA Control) sets the strengths of all LoRAs at every step: switch it off "
            "for a strength over the steps in `<merge:…>`."
        )
        raise RecipeError(message)


def _set_multipliers(strengths: Mapping[str, float]) -> None:
    for network in lora_code.tables().loaded_networks:
        if network.name in strengths:
            network.unet_multiplier = strengths[network.name]


def _with_lora(unet: Any, model: Any, path: Path, strength: float) -> Any:  # noqa: ANN401
    """Return a copy of the patcher with a LoRA added, as the WebUI itself adds it to this model."""
    networks, online = lora_code.tables(), _online(model, path)
    tensors = dict(networks.load_lora_state_dict(str(path)))
    more: dict[str, Any] = {"filename": str(path)}
    if "online_mode" in inspect.signature(networks.load_lora_for_models).parameters:
        more["online_mode"] = online
    # with the text encoder, whose keys would count as strangers otherwise; its copy is not used
    clip = model.forge_objects.clip
    patched, _ = networks.load_lora_for_models(unet, clip, tensors, strength, strength, **more)
    if patched is unet:
        message = f"the WebUI did not take {path.stem} at strength {strength:g}; its log says why."
        raise RecipeError(message)
    return patched


def _online(model: Any, path: Path) -> bool:  # noqa: ANN401
    """Tell whether the WebUI adds this LoRA in every forward, not to the weights, as it noted itself."""
    try:
        noted = ast.literal_eval(model.current_lora_hash)
        return next(bool(entry[3]) for entry in noted if entry[0] == str(path))
    except (AttributeError, IndexError, StopIteration, SyntaxError, TypeError, ValueError):
        return False


def _nunchaku() -> bool:
    return bool(_dynamic("nunchaku"))


def _dynamic(name: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module("backend.args").dynamic_args.get(name, False)
    except ImportError:
        return False


def _preparing() -> Any:  # noqa: ANN401
    """Return the WebUI's function that brings a patcher and its patches into the model.

    Raises:
        RecipeError: it is not where it is known to be.
    """
    for name in ("backend.sampling.sampling_function", "modules_forge.forge_sampler"):
        try:
            return importlib.import_module(name).sampling_prepare
        except (ImportError, AttributeError):
            continue
    message = "this WebUI cannot change the strength of a LoRA over the steps: write one number."
    raise RecipeError(message)
