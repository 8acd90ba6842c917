"""The public verbs: merge, resize, run a recipe, verify a merged file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Union

from lib_merge import metadata
from lib_merge.adapters import open_lora
from lib_merge.engine.merge import run, save_groups
from lib_merge.engine.merge import verify as hold_against_recipe
from lib_merge.engine.report import MergeReport
from lib_merge.engine.threads import Job
from lib_merge.errors import FileFormatError, RecipeError
from lib_merge.files.store import read_text
from lib_merge.library.recipes import finder
from lib_merge.methods import DEFAULT_METHOD
from lib_merge.ranks.policy import RankPolicy, parse_policy
from lib_merge.recipe import Blocks, Recipe, Source, loads, with_paths

PathLike = Union[str, Path]


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
        job: device, overwrite, progress, cancel.
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
    return run_recipe(recipe, save_to, job=job, keep_levels=keep_levels)


def _spread(sources: list[Source], field: str, values: Sequence[Any] | None) -> list[Source]:
    if values is None:
        return sources
    if len(values) != len(sources):
        message = f"{len(values)} {field} values for {len(sources)} sources: give one for each."
        raise RecipeError(message)
    return [replace(source, **{field: value}) for source, value in zip(sources, values)]


def run_recipe(
    recipe: Recipe, save_to: PathLike, *, job: Job | None = None, keep_levels: PathLike | None = None
) -> MergeReport:
    """Run a recipe whose sources have paths; see `merge`."""
    job = job or Job()
    report = run(recipe, Path(save_to), job)
    if keep_levels is not None:
        report.warnings.extend(save_groups(recipe, Path(keep_levels), job))
    return report


def resize(
    model: PathLike,
    *,
    rank: str | int | RankPolicy,
    save_to: PathLike,
    **options: Any,  # noqa: ANN401
) -> MergeReport:
    """Save one LoRA at another rank: the best approximation there is (Eckart-Young), with its error.

    Args:
        model: the LoRA.
        rank: a number, "energy:0.99", "error:0.01" or "budget:50MB".
        save_to: the output.
        options: further arguments of `merge`.
    """
    return merge([model], rank=rank, save_to=save_to, **options)


def convert(
    model: PathLike,
    *,
    save_to: PathLike,
    target: str = "",
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
        options: further arguments of `merge`.
    """
    return merge([model], save_to=save_to, target=target, **options)


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


def verify(merged: PathLike, folders: Sequence[PathLike] = (), *, job: Job | None = None) -> MergeReport:
    """Hold a merged file against its recipe, with freshly read sources.

    Returns:
        The report, measured now.
    Raises:
        VerifyError: the file differs from its recipe.
        RecipeError: no recipe in it, or a source is not found.
    """
    return hold_against_recipe(Path(merged), load_recipe(merged, folders), job or Job())
