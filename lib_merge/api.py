"""The public verbs: merge, resize, convert, run a recipe, verify, analyze, inspect, presets.

Those that work take `device`, `overwrite`, `progress` and `job`: a `Job` has more of how work runs (cancel,
trash, side-cars), and what is given beside it replaces its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union

import torch

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.analysis import AnalysisReport
from lib_merge.analysis import analyze as look_at
from lib_merge.analysis.steps import as_recipe
from lib_merge.blocks import PresetStore, preset_names
from lib_merge.blocks.weights import resolve_blocks
from lib_merge.engine.merge import run, save_groups
from lib_merge.engine.merge import verify as hold_against_recipe
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job, Progress
from lib_merge.errors import FileFormatError, RecipeError
from lib_merge.families import family_of, with_blocks
from lib_merge.files.store import read_text
from lib_merge.library.inspect import inspect_file
from lib_merge.library.recipes import finder
from lib_merge.methods import DEFAULT_METHOD, get_method
from lib_merge.ranks.policy import RankPolicy, parse_policy
from lib_merge.recipe import Blocks, Recipe, Source, loads, with_paths
from lib_merge.recipe_edits import with_method

PathLike = Union[str, Path]
Device = Union[str, torch.device]


def merge(
    sources: Sequence[PathLike | Source],
    *,
    save_to: PathLike,
    ratios: Sequence[float] | None = None,
    blocks: Sequence[Blocks] | None = None,
    te_ratios: Sequence[float | tuple[float, ...] | None] | None = None,
    method: str = DEFAULT_METHOD,
    knobs: Mapping[str, Any] | None = None,
    rank: str | int | RankPolicy | None = None,
    conv_rank: int | None = None,
    prune: float = 0.0,
    prune_below: float = 0.0,
    save_precision: str = "fp16",
    seed: int = 0,
    family: str | None = None,
    target: str = "",
    trainable: bool = False,
    device: Device | None = None,
    overwrite: bool | None = None,
    drop_unsupported: bool | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
    keep_levels: PathLike | None = None,
) -> MergeReport:
    """Merge LoRAs into one file.

    ΔW = Σ ratioᵢ · block_weightᵢ · ΔWᵢ for the default method; see `METHODS` for the others.

    Args:
        sources: paths, or `Source` objects for roles, element rules and groups.
        save_to: the output, .safetensors.
        ratios: one per source; 1 by default.
        blocks: block weights per source.
        te_ratios: per source, replaces the ratio for text encoders; a pair gives (TE1, TE2).
        method: a name from `METHODS`.
        knobs: the method's settings.
        rank: "lossless", a number, "energy:0.99", "error:0.01", "budget:50MB"; None = the method's default.
        conv_rank: rank of k×k convolutions.
        prune: relative threshold under which ranks and modules are dropped.
        prune_below: absolute threshold under which ranks are dropped, by their singular value.
        save_precision: fp16, bf16 or float.
        seed: of random masks and block tokens.
        family: decides where shapes cannot.
        target: names that this host loads, or a spelling; "" = names that every host of the family loads.
        trainable: factors as large as trainers begin them, and the sources' alpha.
        device: "cpu" (default), "auto", "cuda", "mps", … or a torch.device.
        overwrite: replace the output where it exists.
        drop_unsupported: leave out kinds that need the base model, and say so, instead of refusing the file.
        progress: called with (stage, modules done, modules in all).
        job: more of how it runs, such as cancel.
        keep_levels: folder for one file per group.
    Returns:
        The report, measured from the saved file.
    Raises:
        MergeError: one sentence on what is wrong; nothing was written.
    """
    given = [
        item if isinstance(item, Source) else Source(path=Path(item), name=Path(item).name)
        for item in sources
    ]
    given = _spread(given, "ratio", ratios)
    given = _spread(given, "blocks", blocks)
    given = _spread(given, "te_ratio", te_ratios)
    recipe = Recipe(
        sources=tuple(given),
        method=method,
        knobs=dict(knobs or {}),
        rank=None if rank is None else parse_policy(rank),
        conv_rank=conv_rank,
        prune=prune,
        prune_below=prune_below,
        precision=save_precision,
        seed=seed,
        family=family,
        names=target,
        trainable=trainable,
    )
    job = _job(job, device=device, overwrite=overwrite, drop_unsupported=drop_unsupported, progress=progress)
    return run_recipe(recipe, save_to, job=job, keep_levels=keep_levels)


def _job(job: Job | None, **given: Any) -> Job:  # noqa: ANN401 - fields of Job, None where not given
    """Return how work runs: what is given, over a job's own."""
    return replace(job or Job(), **{name: value for name, value in given.items() if value is not None})


def _spread(sources: list[Source], field: str, values: Sequence[Any] | None) -> list[Source]:
    if values is None:
        return sources
    if len(values) != len(sources):
        message = f"{len(values)} {field} values for {len(sources)} sources: give one for each."
        raise RecipeError(message)
    return [replace(source, **{field: value}) for source, value in zip(sources, values)]


def run_recipe(
    recipe: Recipe,
    save_to: PathLike,
    *,
    device: Device | None = None,
    overwrite: bool | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
    keep_levels: PathLike | None = None,
) -> MergeReport:
    """Run a recipe whose sources have paths, as `load_recipe` returns it; see `merge`."""
    job = _job(job, device=device, overwrite=overwrite, progress=progress)
    report = run(recipe, Path(save_to), job)
    if keep_levels is not None:
        report.warnings.extend(save_groups(recipe, Path(keep_levels), job))
    return report


def resize(
    model: PathLike,
    *,
    rank: str | int | RankPolicy,
    save_to: PathLike,
    device: Device | None = None,
    overwrite: bool | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
    **options: Any,  # noqa: ANN401
) -> MergeReport:
    """Save one LoRA at another rank: the best approximation there is (Eckart-Young), with its error.

    Args:
        model: the LoRA.
        rank: a number, "energy:0.99", "error:0.01" or "budget:50MB".
        save_to: the output.
        device: as of `merge`.
        overwrite: replace the output where it exists.
        progress: called with (stage, modules done, modules in all).
        job: more of how it runs.
        options: further arguments of `merge`, such as save_precision, prune and family.
    """
    job = _job(job, device=device, overwrite=overwrite, progress=progress)
    return merge([model], rank=rank, save_to=save_to, job=job, **options)


def convert(
    model: PathLike,
    *,
    save_to: PathLike,
    target: str = "",
    device: Device | None = None,
    overwrite: bool | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
    **options: Any,  # noqa: ANN401
) -> MergeReport:
    """Write one LoRA anew under other names, as LoRA factors whatever its kind, proven like a merge.

    LoHa, LoKr and Tucker become LoRA exactly; fused q, k and v are split or put together where the spelling
    wants it, exactly unless a rank is asked for. Names that are known to be broken come out right.

    Args:
        model: the LoRA.
        save_to: the output.
        target: a spelling (kohya, diffusers, comfyui, onetrainer) or a host that must load it; "" = what
            every host of the family loads.
        device: as of `merge`.
        overwrite: replace the output where it exists.
        progress: called with (stage, modules done, modules in all).
        job: more of how it runs.
        options: further arguments of `merge`, such as save_precision, prune and family.
    """
    job = _job(job, device=device, overwrite=overwrite, progress=progress)
    return merge([model], save_to=save_to, target=target, job=job, **options)


MOST_RECIPE = 8 << 20  # bytes of a recipe's file


def load_recipe(path: PathLike, folders: Sequence[PathLike] = ()) -> Recipe:
    """Read a recipe from a .json, or from the metadata of a merged file, and find its sources.

    Args:
        path: the recipe or the merged LoRA.
        folders: where to look for the sources, beside the file's own folder; by name and size first, then by
            hash.
    Raises:
        RecipeError: no recipe in it, or a source is not found.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        try:
            read = read_text(path, MOST_RECIPE)
        except FileFormatError as error:
            raise RecipeError(str(error)) from error
        if read is None:
            message = f"{path.name} cannot be read: there is no such file."
            raise RecipeError(message)
        text = read
    else:
        opened = open_lora(path)
        opened.close()
        text = metadata.recipe_of(opened.metadata) or ""
        if not text:
            message = f"{path.name} was not made by this program: there is no recipe in it."
            raise RecipeError(message)
    recipe = loads(text, path.name)
    return with_paths(recipe, finder([path.parent, *map(Path, folders)], exclude=path))


def verify(
    merged: PathLike,
    folders: Sequence[PathLike] = (),
    *,
    device: Device | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
) -> MergeReport:
    """Hold a merged file against its recipe, with freshly read sources.

    Args:
        merged: a file that this program made.
        folders: where to look for the sources, beside the file's own folder.
        device: as of `merge`; of a merge made elsewhere, the one it was made on.
        progress: called with (stage, modules done, modules in all).
        job: more of how it runs.
    Returns:
        The report, measured now.
    Raises:
        VerifyError: the file differs from its recipe.
        RecipeError: no recipe in it, or a source is not found.
    """
    job = _job(job, device=device, progress=progress)
    return hold_against_recipe(Path(merged), load_recipe(merged, folders), job)


def analyze(
    sources: Recipe | Sequence[PathLike | Source],
    *,
    ratios: Sequence[float] | None = None,
    method: str | None = None,
    family: str | None = None,
    compare: Sequence[str] | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
    job: Job | None = None,
) -> AnalysisReport:
    """Say what is in LoRAs, what merging them will do, and what to do about it; nothing is written.

    Args:
        sources: paths, `Source` objects, or a recipe with paths.
        ratios: one per source; 1, or the source's own, by default.
        method: of the merge that is looked at; weighted_sum, or the recipe's own, by default.
        family: decides where shapes cannot.
        compare: methods to compare; by default all that fit and work on no whole matrices.
        device: of methods that are carried out; as of `merge`.
        progress: called with (stage, modules done, modules in all).
        job: more of how it runs.
    Returns:
        The report; `lib_merge.analysis.to_html` and `to_json` write it down.
    Raises:
        MergeError: a file is damaged or of another family, or what was asked for cannot be.
    """
    recipe = as_recipe(sources, family)
    if ratios is not None:
        recipe = replace(recipe, sources=tuple(_spread(list(recipe.sources), "ratio", ratios)))
    if method is not None:
        recipe = with_method(recipe, method)
    if family is not None:
        recipe = replace(recipe, family=family)
    methods = None if compare is None else [get_method(name).name for name in compare]
    return look_at(recipe, _job(job, device=device, progress=progress), methods=methods)


def inspect(model: PathLike, *, family: str | None = None) -> dict[str, Any]:
    """Say what is in a LoRA file: family, kinds, ranks, blocks, norms, tags, who loads it, its recipe.

    Args:
        model: the LoRA.
        family: decides where shapes cannot.
    Returns:
        JSON-ready facts, as `python -m lib_merge inspect --json` prints them.
    Raises:
        MergeError: damaged or not a LoRA.
    """
    return inspect_file(Path(model), family)


def presets(family: str, *, file: PathLike | None = None) -> dict[str, dict[str, float]]:
    """Return the block presets that fit a family: name -> {block: weight}, every block named.

    Args:
        family: a base family with a table of blocks, such as "SDXL".
        file: a presets.json as the tab keeps one; its presets come after those of this program. Random
            weights in it are drawn, alike every time; a merge draws its own.
    Raises:
        RecipeError: no such family, or none with blocks.
    """
    blocks = family_of(family).blocks
    if not blocks:
        known = ", ".join(one.name for one in with_blocks())
        message = f"there are no block presets for {family!r}; there are for {known}."
        raise RecipeError(message)
    store = None if file is None else PresetStore(Path(file))
    found: dict[str, dict[str, float]] = {}
    for name in preset_names(family, store):
        weights, _ = resolve_blocks(name, family, blocks, random.Random(0), name, store=store)
        found[name] = {block: weights.get(block, 1.0) for block in blocks}
    return found
