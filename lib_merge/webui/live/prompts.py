"""Bringing live merges into a generation: what a prompt or a script asks for is merged first.

`<merge:NAME:0.8>` in a prompt names a saved recipe, which is merged when the picture is made;
`<merge:NAME:0.8@0-0.5>` gives it a strength that changes over the steps (`curves.py`).

A script says what it wants on the processing object, which the WebUI copies from picture to picture:

    p.lora_merge_parts    parts added to the prompt of every batch, one tuple for all or one per batch
    p.lora_merge_recipe   the recipe that the infotext carries for them
    p.lora_merge_changes  changes to the first merge of the prompt, or to the tab's where the prompt has none
    p.lora_merge_keep     live merges stay until the script removes them

Nothing of it is in `p.prompt`, so the infotext has what the person wrote and no name that means nothing
tomorrow.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib_merge.errors import MergeError, RecipeError
from lib_merge.recipe import Recipe
from lib_merge.ui.desk import Desk
from lib_merge.ui.state import tab_state, to_recipe
from lib_merge.webui import checkpoint, lora_code
from lib_merge.webui.live import steps
from lib_merge.webui.live.curves import split_strengths
from lib_merge.webui.live.merges import Live, LiveMerges
from lib_merge.webui.live.steps import Course, Stepper
from lib_merge.webui.refusal import comment, refuse, restore

# ------------------------------------------------------------------------------------------------ injection

log = logging.getLogger("lib_merge")
RECIPE_KEY = "Merge recipe"
Change = Callable[[Recipe], Recipe]
_live: dict[str, LiveMerges] = {}


@dataclass(frozen=True, slots=True)
class Part:
    """What is added to the prompt: a tag as it stands, or a recipe that is merged live and used at a
    strength.

    bytes   of the file the tag names
    """

    tag: str = ""
    recipe: Recipe | None = None
    strength: float = 1.0
    bytes: int = 0


@dataclass(slots=True)
class Plan:
    """What one generation uses.

    named      recipe name in the prompt -> its live merge
    added      per batch, tags that are added to its prompts; the last one holds for all batches after it
    error      why nothing can be made, in one sentence
    courses    what changes over the steps in the first pass of this batch, and in Hires fix
    stepper    sets it
    activated  seconds the WebUI took to load the LoRAs of the last batch
    """

    named: dict[str, Live] = field(default_factory=dict)
    added: list[list[str]] = field(default_factory=list)
    error: str = ""
    courses: tuple[dict[str, Course], dict[str, Course]] = field(default_factory=lambda: ({}, {}))
    stepper: Stepper = field(default_factory=Stepper)
    begun: float = 0.0
    activated: float = 0.0

    def tags_of(self, batch: int) -> list[str]:
        """Return the tags added to a batch."""
        return self.added[min(batch, len(self.added) - 1)] if self.added else []


def live_of(desk: Desk) -> LiveMerges:
    """Return the live merges of this process; made at the WebUI's start, so that leftovers go."""
    key = str(desk.host.data_folder())
    if key not in _live:
        _live[key] = LiveMerges(desk.host.data_folder() / "live")
    return _live[key]


def setup_of(p: Any) -> str:  # noqa: ANN401
    """Return what is set up in the Merge tab of the browser that asked for this generation."""
    for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or ():
        if getattr(script, "lora_merge_setup", False):
            given = list(p.script_args[script.args_from : script.args_to])
            return str(given[0] or "") if given else ""
    return ""


def tab_recipe(desk: Desk, text: str) -> Recipe:
    """Return the recipe that is set up in the Merge tab.

    Raises:
        MergeError: nothing is, or it cannot be merged.
    """
    try:
        state = json.loads(text) if text.strip() else None
    except ValueError:
        state = None
    if not isinstance(state, dict):
        message = "set up a merge in the Merge tab first, or name a saved recipe."
        raise RecipeError(message)
    return to_recipe(tab_state(state), desk.library.resolve)


def prepare(p: Any, desk: Desk, setup: str) -> None:  # noqa: ANN401
    """Merge what this generation needs and leave the plan on `p`; where it cannot, the generation is refused.

    Args:
        p: the WebUI's processing object, its prompts set up.
        desk: the tab's server side.
        setup: JSON of the Merge tab.
    """
    restore(p)
    p.lora_merge_plan = None
    prompts = [*(getattr(p, "all_prompts", None) or []), *(getattr(p, "all_hr_prompts", None) or [])]
    names = names_in(str(prompt) for prompt in prompts)
    parts, changed = getattr(p, "lora_merge_parts", None), getattr(p, "lora_merge_changes", ())
    if not names and not parts and not changed:
        return
    plan = p.lora_merge_plan = Plan()
    try:
        lora_code.check_live()
        if any(course_of(rest) for prompt in prompts for _, rest in tags_in(str(prompt))):
            steps.check(p)
        _merge(p, desk, setup, plan, names)
        _check_once(map(str, prompts), plan)
    except MergeError as error:
        plan.error = str(error)
        refuse(p, plan.error)


def _merge(p: Any, desk: Desk, setup: str, plan: Plan, names: Sequence[str]) -> None:  # noqa: ANN401
    live, device = live_of(desk), desk.host.device()
    recipes = {name: desk.recipe_named(name) for name in names}
    changed: Sequence[Change] = getattr(p, "lora_merge_changes", ())
    extra: list[Recipe] = []
    if changed:
        recipe = recipes[names[0]] if names else tab_recipe(desk, setup)
        for change in changed:
            recipe = change(recipe)
        recipe.check()
        if names:
            recipes[names[0]] = recipe
        else:
            extra.append(recipe)
    used: list[Live] = []

    def make(recipe: Recipe) -> Live:
        made = live.make(recipe, device, cancelled=_interrupted)
        checkpoint.check_family(made.family)
        used.append(made)
        return made

    plan.named = {name: make(recipe) for name, recipe in recipes.items()}
    more = [f"<lora:{make(recipe).name}:1>" for recipe in extra]
    batches = getattr(p, "lora_merge_parts", None) or ((),)
    plan.added = [[*more, *(_tag(part, make) for part in batch)] for batch in batches]
    shown = [*recipes.values(), *extra]
    if getattr(p, "lora_merge_recipe", None) is not None:
        shown.append(p.lora_merge_recipe)
    texts = infotext([live.stamped(recipe) for recipe in shown])
    p.extra_generation_params = {**p.extra_generation_params, **texts}
    if not getattr(p, "lora_merge_keep", False):
        live.trim(keep=[one.name for one in used])


def infotext(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return the infotext's entries: `Merge recipe`, `Merge recipe 2`, …, as short JSON that means the same
    merge when pasted.

    Args:
        recipes: with hashes, so that a source is told from another of its name.
    """
    return {
        f"{RECIPE_KEY} {number}" if number > 1 else RECIPE_KEY: recipe.brief()
        for number, recipe in enumerate(recipes, 1)
    }


def _tag(part: Part, make: Callable[[Recipe], Live]) -> str:
    return part.tag if part.recipe is None else f"<lora:{make(part.recipe).name}:{part.strength:g}>"


def before_batch(p: Any, desk: Desk, batch: int, prompts: list[str]) -> None:  # noqa: ANN401
    """Turn the prompts of a batch, in place, into what the WebUI's own LoRA loader understands.

    An empty list of prompts is how a WebUI is told to make no picture; a merge that cannot be made makes
    none. A LoRA that nobody knows is left out and said: looking it up would lose the merge.
    """
    plan: Plan | None = getattr(p, "lora_merge_plan", None)
    if plan is None:
        return
    if plan.error:
        prompts.clear()
        return
    show = live_of(desk).show
    show()
    # a WebUI takes the LoRAs of a batch from its first prompt
    plan.courses = (courses_in(prompts[0], plan.named) if prompts else {}, {})
    named = {name: live.name for name, live in plan.named.items()}
    added = " ".join(plan.tags_of(batch))
    prompts[:] = [f"{as_lora_tags(prompt, named)} {added}".rstrip() for prompt in prompts]
    _left_out(p, lora_code.settle(prompts, show))
    plan.begun = time.perf_counter()


def _left_out(p: Any, names: Iterable[str]) -> None:  # noqa: ANN401
    for name in names:
        comment(p, f"there is no LoRA called {name!r}: it was left out of the picture.")


def after_activation(p: Any, desk: Desk, batch: int) -> None:  # noqa: ANN401
    """Do the same for the prompts of Hires fix, which the WebUI has parsed by now; note what loading took."""
    plan: Plan | None = getattr(p, "lora_merge_plan", None)
    if plan is None or plan.error:
        return
    plan.activated = time.perf_counter() - plan.begun
    data = getattr(p, "hr_extra_network_data", None)
    if not getattr(p, "enable_hr", False) or data is None:
        return
    from modules.extra_networks import parse_prompt

    named = {name: live.name for name, live in plan.named.items()}
    asked = " ".join(f"<merge:{':'.join(map(str, params.items))}>" for params in data.pop("merge", []))
    text = f"{as_lora_tags(asked, named)} {' '.join(plan.tags_of(batch))}"
    have = {str(params.items[0]) for params in data.get("lora", []) if params.items}
    for params in parse_prompt(text)[1].get("lora", []):
        if str(params.items[0]) not in have:
            data["lora"].append(params)
    plan.courses = (plan.courses[0], courses_in(asked, plan.named))
    show = live_of(desk).show
    show()
    for kind in lora_code.kinds().intersection(data):
        unknown = lora_code.unknown_of([lora_code.name_in(params.items) for params in data[kind]], show)
        data[kind][:] = [params for params in data[kind] if lora_code.name_in(params.items) not in unknown]
        _left_out(p, unknown)


def at_step(params: Any) -> None:  # noqa: ANN401
    """Set the strengths that change over the steps; called by the WebUI before every call of its denoiser."""
    p = getattr(getattr(params, "denoiser", None), "p", None)
    plan: Plan | None = getattr(p, "lora_merge_plan", None)
    if p is None or plan is None or plan.error:
        return
    courses = plan.courses[1 if getattr(p, "is_hr_pass", False) else 0]
    if not courses:
        return
    try:
        plan.stepper.set(params, p, courses)
    except Exception as error:
        # the WebUI catches what is raised here and goes on with the strength before: no such picture is made
        log.exception("the strength over the steps could not be set")
        plan.error = f"the strength over the steps could not be set, so the picture was stopped: {error}"
        comment(p, plan.error)
        from modules import shared

        shared.state.interrupted = True


def after(p: Any, processed: Any) -> None:  # noqa: ANN401
    """Say below the pictures what was only known at their end, and let go of the models."""
    plan: Plan | None = getattr(p, "lora_merge_plan", None)
    if plan is None:
        return
    sentences = [one for one in (plan.stepper.said,) if one]
    plan.stepper = Stepper()
    comments = getattr(processed, "comments", None)
    for sentence in sentences:
        log.info("%s", sentence)
        if isinstance(comments, str) and sentence not in comments:
            comments = processed.comments = f"{comments}{sentence}\n"


def _interrupted() -> bool:
    from modules import shared

    return bool(shared.state.interrupted)


# ------------------------------------------------------------------------------------------------ tags

_TAG = re.compile(r"<merge:([^<>:]+)((?::[^<>:]*)*)>")


def names_in(texts: Iterable[str]) -> list[str]:
    """Return the recipes that prompts name, each once, in order."""
    names: dict[str, None] = {}
    for text in texts:
        for match in _TAG.finditer(text):
            names[match[1].strip()] = None
    return list(names)


def tags_in(text: str) -> list[tuple[str, str]]:
    """Return (recipe, what follows it) of every `<merge:…>` in a prompt."""
    return [(match[1].strip(), match[2]) for match in _TAG.finditer(text)]


def course_of(rest: str) -> bool:
    """Tell whether what follows a name has a strength over the steps; raises `RecipeError` for a bad one."""
    return split_strengths(rest)[1] is not None


def courses_in(text: str, named: Mapping[str, Live]) -> dict[str, Course]:
    """Return live merge -> its strength over the steps, of those in a prompt that have one.

    Args:
        text: the prompt.
        named: recipe name -> its live merge.
    """
    courses: dict[str, Course] = {}
    for name, rest in tags_in(text):
        curve, live = split_strengths(rest)[1], named.get(name)
        if curve is not None and live is not None:
            courses[live.name] = Course(live.name, live.path, curve)
    return courses


def _check_once(prompts: Iterable[str], plan: Plan) -> None:
    """Raise `RecipeError` where a merge has a strength over the steps beside another strength."""
    added = " ".join(tag for tags in plan.added for tag in tags)
    for text in prompts:
        tags = [(name, rest, plan.named[name].name) for name, rest in tags_in(text) if name in plan.named]
        for name, rest, live in tags:
            if course_of(rest) and (sum(live == one for *_, one in tags) > 1 or live in added):
                message = f"{name!r} is in the picture twice: a strength over the steps needs it once."
                raise RecipeError(message)


def as_lora_tags(text: str, live: Mapping[str, str]) -> str:
    """Return a prompt with every `<merge:…>` as the `<lora:…>` that the WebUI can load.

    Args:
        text: the prompt.
        live: recipe name -> name of its live merge. What follows the name (`:0.8`, `:te=1:unet=0.5`) stays
            as it is; of a strength over the steps the text encoder's stays, and the denoiser begins at 0.
    """
    return _TAG.sub(lambda match: _lora(match[1], match[2], live), text)


def _lora(name: str, rest: str, live: Mapping[str, str]) -> str:
    merged = live.get(name.strip())
    return f"<lora:{merged}{split_strengths(rest)[0]}>" if merged else ""
