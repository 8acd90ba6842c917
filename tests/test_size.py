"""What is foreseen from headers is what is saved, or a bound that says so: over random recipes, kind by kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lib_merge import METHODS, Job, Recipe, Source, parse_policy, run_recipe
from lib_merge.analysis import analyze
from lib_merge.engine.cancelling import CANCELLED
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from lib_merge.errors import OutputError, RecipeError
from lib_merge.recipe import ElementRule
from lib_merge.recipe_edits import handles, with_aside
from tests import test_bytes
from tests.factories import NAMES, lora_tensors, write
from tests.test_bytes import _lora
from tests.test_kinds import KINDS, _kind_tensors


def _vectors():
    tensors = lora_tensors(7, rank=3)
    tensors[f"{NAMES[0]}.diff_b"] = torch.ones(24)
    tensors["lora_unet_mid_block_attentions_0_norm.w_norm"] = torch.ones(16)
    tensors["lora_unet_mid_block_attentions_0_norm.b_norm"] = torch.ones(16)
    return tensors


def _kind(kind):
    name, tensors, _ = _kind_tensors(kind)
    return lora_tensors(5, names=NAMES[1:2], conv=False) | {f"{name}.{r}": v for r, v in tensors.items()}


def _negated(tensors):
    """The same LoRA with the other sign, whatever its kind: one factor of every module is turned over."""
    turned, done = {}, set()
    for key, value in tensors.items():
        name = key.partition(".")[0]
        first = value.dim() > 1 and name not in done and not key.endswith("alpha")
        turned[key] = -value if first or value.dim() == 1 else value.clone()
        done |= {name} if first else set()
    return turned


def _twin(seed, tensors):
    """Another LoRA with every other module of `tensors`."""
    names = sorted({key.partition(".")[0] for key in tensors})[::2]
    kept = {key: value for key, value in tensors.items() if key.startswith(tuple(names))}
    others = {key: value + 0.1 * (seed + value) for key, value in tensors.items() if key not in kept}
    return kept | others


SD1 = {
    "plain": lambda: lora_tensors(1, rank=4),
    "wide": lambda: lora_tensors(2, rank=13),
    "part": lambda: lora_tensors(3, rank=2, names=NAMES[1:3], conv=False),
    "thin": lambda: {k: v * 1e-4 if "mid_block" in k else v for k, v in lora_tensors(4, rank=3).items()},
    "vectors": _vectors,
    "plain negated": lambda: _negated(lora_tensors(1, rank=4)),
    "vectors negated": lambda: _negated(_vectors()),
    "twin": lambda: _twin(2, lora_tensors(1, rank=4)),
    **{f"kind {kind}": lambda kind=kind: _kind(kind) for kind in KINDS},
    **{
        f"kind {kind} negated": lambda kind=kind: _negated(_kind(kind))
        for kind in ("loha", "lokr_half", "diff")
    },
}
SDXL = {
    "xl": lambda: _lora(1, test_bytes.SDXL, 3, alpha=2),
    "xl negated": lambda: _negated(_lora(1, test_bytes.SDXL, 3, alpha=2)),
    "xl twin": lambda: _twin(1, _lora(1, test_bytes.SDXL, 3, alpha=2)),
    "xl other": lambda: _lora(2, test_bytes.SDXL, 5, alpha=5),
}
FLUX = {
    "flux": lambda: _lora(1, test_bytes.FLUX, 3, alpha=3),
    "flux negated": lambda: _negated(_lora(1, test_bytes.FLUX, 3, alpha=3)),
    "flux split": lambda: _lora(2, test_bytes.FLUX_SPLIT, 2, roles=test_bytes.PEFT),
    "flux twin": lambda: _twin(1, _lora(1, test_bytes.FLUX, 3, alpha=3)),
}
# most recipes are of the family with most kinds, and small
FAMILIES = (SD1, SD1, SD1, SD1, SDXL, FLUX)
FILES = SD1 | SDXL | FLUX
BLOCKS = (None, {"IN04": 0.0}, {"M00": 0.0, "OUT06": 0.0}, {"BASE": 0.5})
RANKS = (None, None, None, None, "lossless", "1", "3", "40", "energy:0.9", "error:0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, tensors in FILES.items():
        write(folder / f"{name}.safetensors", tensors())
    return folder


def _knob(knob, count):
    """Values that a knob may have: one for all, or one for each source."""
    if knob.choices or isinstance(knob.default, bool):
        return st.sampled_from(knob.choices or (True, False))
    middle = (knob.minimum + knob.maximum) / 2
    values = (knob.default, knob.minimum, int(middle) if isinstance(knob.default, int) else middle)
    one = st.sampled_from(values)
    return one if knob.scope != "source" else st.one_of(one, st.lists(one, min_size=count, max_size=count))


@st.composite
def _recipes(draw, depth=0, files=None):
    """A recipe without paths: any method and knobs, policy, blocks and rules, groups and a file more than once."""
    files = files or draw(st.sampled_from(FAMILIES))
    method = METHODS[draw(st.sampled_from(("weighted_sum",) * 15 + tuple(sorted(METHODS))))]
    least, most = method.sources
    count = draw(st.integers(least, min(most or 3, 3)))
    sources = []
    for number in range(count):
        options = {
            "ratio": draw(st.sampled_from((1.0, 0.5, 0.75, -0.5, -1.0, 0.0))),
            "blocks": draw(st.sampled_from(BLOCKS)) if files is SD1 else None,
            "role": method.roles[number] if method.roles else None,
            "te_ratio": draw(st.sampled_from((None, None, 0.0))),
        }
        if draw(st.booleans()):
            options["elements"] = (ElementRule("", "attn1", 0.0),)
        if depth < 2 and draw(st.integers(0, 3)) == 0:
            sources.append(Source(name=f"group {number}", recipe=draw(_recipes(depth + 1, files)), **options))
        else:
            sources.append(Source(name=draw(st.sampled_from(sorted(files))), **options))
    rank = draw(st.sampled_from((*RANKS, "budget:180KB") if not depth else RANKS))
    if method.space == "dense" and rank == "lossless":
        rank = None
    recipe = Recipe(
        sources=tuple(sources),
        method=method.name,
        knobs={knob.name: draw(_knob(knob, count)) for knob in method.knobs if draw(st.booleans())},
        rank=None if rank is None else parse_policy(rank),
        conv_rank=draw(st.sampled_from((None, None, None, None, 1, 6))),
        prune=draw(st.sampled_from((0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.5))),
        prune_below=draw(st.sampled_from((0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 2.0))),
        precision=draw(st.sampled_from(("fp16", "bf16", "float"))),
        seed=draw(st.integers(0, 2)),
        family="Flux" if files is FLUX else None,
    )
    leaves = [name for name, place in handles(recipe).items() if len(place) == 1 and name.isalpha()]
    flat = recipe.flat and len(recipe.sources) > max(1, least)
    if flat and not depth and not method.roles and draw(st.integers(0, 3)) == 0:
        recipe = with_aside(recipe, [draw(st.sampled_from(leaves))])
    return recipe


def _placed(recipe, folder):
    """The recipe with paths."""
    return replace(
        recipe,
        sources=tuple(
            replace(one, recipe=_placed(one.recipe, folder))
            if one.recipe is not None
            else replace(one, path=folder / f"{one.name}.safetensors")
            for one in recipe.sources
        ),
    )


def _saved(path):
    """Return module -> rank, 0 for a whole matrix or vectors alone."""
    ranks = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            name = key.partition(".")[0]
            if name == "bundle_emb":
                continue
            ranks.setdefault(name, 0)
            if key.endswith("lora_down.weight"):
                ranks[name] = file.get_slice(key).get_shape()[0]
    return ranks


def _hold(recipe, out):
    """Hold what is foreseen of a recipe against the file that it makes."""
    with open_tree(recipe, drop_unsupported=True) as tree:
        size = foresee(tree)
    try:
        report = run_recipe(recipe, out, job=Job(side_car=False, overwrite=True))
    except (OutputError, RecipeError) as error:
        assert "nothing would be left" in str(error) or "budget is too small" in str(error), error
        assert not any(module.exact and not module.filler for module in size.modules.values())
        return size, None
    saved = _saved(out)
    assert set(saved) <= set(size.modules)
    assert all(rank <= size.modules[name].rank for name, rank in saved.items())
    assert report.bytes == out.stat().st_size <= size.bytes
    for name, module in size.modules.items():
        if module.exact:
            assert saved[name] == module.rank, name
    if size.exact:
        assert report.bytes == size.bytes
        assert size.rank == (report.ranks()["min"], report.ranks()["max"])
    assert set(size.cancelled) <= {name for name, why in report.left_out.items() if why == CANCELLED}
    if not size.cut:
        assert report.energy_kept > 1 - 1e-9
    return size, report


@pytest.mark.slow
@settings(max_examples=150)
@given(recipe=_recipes())
def test_what_is_foreseen_is_what_is_saved(recipe, folder, tmp_path_factory):
    _hold(_placed(recipe, folder), tmp_path_factory.mktemp("out") / "m.safetensors")


def _sum(*names, **more):
    return Recipe(sources=tuple(Source(name=name) for name in names), **more)


def test_a_lossless_sum_is_foreseen_to_the_byte(folder, tmp_path):
    size, report = _hold(
        _placed(_sum("plain", "part", "vectors", "kind diff"), folder), tmp_path / "m.safetensors"
    )
    assert size.exact
    assert not size.cut
    assert report.bytes == size.bytes


def test_embeddings_and_modules_that_a_loader_wants_are_foreseen(tmp_path):
    name = "lora_te2_text_model_encoder_layers_1_self_attn_"
    unet = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    for file, which in (("one", "q"), ("two", "k")):
        tensors = {
            f"{module}.lora_{side}.weight": torch.ones(*shape)
            for module, out, columns in ((f"{name}{which}_proj", 1280, 1280), (unet, 640, 2048))
            for side, shape in (("up", (out, 2)), ("down", (2, columns)))
        }
        write(
            tmp_path / f"{file}.safetensors",
            {**tensors, "bundle_emb.token.string_to_param.*": torch.ones(3, 8)},
        )
    size, report = _hold(_placed(_sum("one", "two"), tmp_path), tmp_path / "m.safetensors")
    assert size.exact
    assert {f"{name}v_proj", f"{name}out_proj"} <= set(size.modules)
    assert len(report.copied) == 2


@pytest.mark.parametrize("more", [{"conv_rank": 2}, {"prune": 0.4}, {"rank": parse_policy("3")}])
def test_what_cuts_is_said_and_is_no_more_than_a_bound(more, folder, tmp_path):
    size, report = _hold(_placed(_sum("plain", "wide", **more), folder), tmp_path / "m.safetensors")
    assert size.cut
    assert not size.exact
    assert report.energy_kept < 1
    if "conv_rank" in more:
        assert size.rank == (2, 17) == (report.ranks()["min"], report.ranks()["max"])


def test_a_group_of_a_dense_method_keeps_the_ranks_of_its_sources(folder, tmp_path):
    """As its own file would."""
    inner = _sum("plain", "part", method="ties")
    recipe = _placed(Recipe(sources=(Source(name="styles", recipe=inner), Source(name="wide"))), folder)
    size, report = _hold(recipe, tmp_path / "m.safetensors")
    assert size.rank[1] == report.ranks()["max"] <= 4 + 2 + 13
    assert report.bytes <= size.bytes


def test_a_budget_bounds_the_file(folder, tmp_path):
    recipe = _placed(_sum("plain", "wide", rank=parse_policy("budget:180KB")), folder)
    size, report = _hold(recipe, tmp_path / "m.safetensors")
    assert report.bytes <= size.bytes <= 180_000


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rank": parse_policy("3")},
        {"rank": parse_policy("energy:0.9")},
        {"rank": parse_policy("budget:180KB")},
        {"conv_rank": 2},
        {"prune": 0.3},
        {"prune_below": 0.05},
        {"rank": parse_policy("5"), "conv_rank": 2, "prune": 0.1, "precision": "float"},
    ],
)
def test_the_analysis_foresees_the_same_file(more, folder, tmp_path):
    """It knows the singular values, so what pruning, a share or a budget leave is exact, too."""
    recipe = _placed(_sum("plain", "vectors", "thin", **more), folder)
    foreseen = analyze(recipe, methods=[]).recipe
    _, report = _hold(recipe, tmp_path / "m.safetensors")
    assert foreseen.bytes == report.bytes
    assert foreseen.rank == (report.ranks()["min"], report.ranks()["max"])
    assert 1 - foreseen.error**2 == pytest.approx(report.energy_kept, abs=1e-6)


def test_what_cancels_ends_no_look_at_it(folder):
    recipe = replace(_sum("plain", "plain"), method="subtract")
    for method in ("subtract", "core_ties", "tsv", "average"):
        report = analyze(_placed(replace(recipe, method=method), folder))
        assert report.stage == "advice"
