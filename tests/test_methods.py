"""Every method against its float64 reference, on random modules and on modules of real files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib_merge import METHODS, Job, Source, merge, open_lora
from lib_merge.cli.commands import main
from lib_merge.errors import OutputError, RecipeError
from lib_merge.families import FAMILIES
from lib_merge.methods import Space
from tests.factories import NAMES, dense_of, lora_tensors, relative, write, write_lora
from tests.reference import merge as basic
from tests.reference import methods as reference

FLOAT = {"save_precision": "float", "job": Job(overwrite=True, side_car=False)}
# method -> list of knob settings to compare at; every method is here or in RANDOM or WHOLE
CASES = {
    "weighted_sum": [{}],
    "average": [{}],
    "add_difference": [{"factor": 0.6}],
    "subtract": [{}],
    "slerp": [{"t": 0.5}, {"t": 0.2}],
    "nuslerp": [{}],
    "karcher": [{}],
    "model_stock": [{}],
    "orthogonal_subtract": [{}],
    "ema": [{"beta": 0.7}],
    "knots_ties": [
        {"trim_fraction": 0.3, "elect": "mass", "normalize": True},
        {"trim_fraction": 0.0, "elect": "count", "normalize": False},
    ],
    "core_ties": [
        {"trim_fraction": 0.3, "elect": "mass", "normalize": True},
        {"trim_fraction": 0.0, "elect": "count", "normalize": False},
    ],
    "tsv": [{}],
    "iso_c": [{"lam": 0.5}, {"lam": 1.0}],
    "iso_cts": [{"lam": 0.5, "common": 0.7}],
    "svc": [{"floor": 1.0}, {"floor": 0.4}],
    "pico": [{"compensate": True}, {"compensate": False}],
    "np_lora": [{"mu": 0.5}, {"mu": 3.0}],
    "decorrelated_sum": [{"mu": 0.25, "guard": True}, {"mu": 0.1, "guard": False}],
    "column_balanced": [{}],
    "ties": [{"trim_fraction": 0.2, "elect": "mass", "normalize": True}],
    "magnitude_prune": [{"trim_fraction": 0.4}],
    "breadcrumbs": [{"gamma": 0.05, "trim_fraction": 0.3}, {"gamma": 0.0, "trim_fraction": 0.0}],
    "sce": [{"select": 0.4}, {"select": 1.0}],
    "tall_mask": [{"lam": 0.4, "agree": 2}, {"lam": 1.0, "agree": 1}],
}
RANDOM = {"dare", "dare_ties", "della", "knots_dare", "core_dare"}
WHOLE = {"norm_preserving"}
# method -> values at which its knobs do nothing, where a knob of that name does nothing elsewhere
NEUTRAL: dict[str, dict[str, float]] = {}
PARAMETERS = [(name, knobs) for name, settings in CASES.items() for knobs in settings]
SMALL = NAMES[:1] + NAMES[1:2] + NAMES[2:4]


def _reference(name):
    return getattr(reference, name, None) or getattr(basic, name)


def _count(name):
    least, most = METHODS[name].sources
    return 3 if most is None or most >= 3 else max(2, least)


def _merge(name, paths, weights, knobs, out, blocks=None, **options):
    roles = (list(METHODS[name].roles) + [None] * len(paths))[: len(paths)]
    sources = [
        Source(path=p, name=p.name, ratio=w, role=r, blocks=blocks) for p, w, r in zip(paths, weights, roles)
    ]
    return merge(sources, save_to=out, method=name, knobs=knobs, **options)


def test_no_method_is_without_a_reference():
    held = set(CASES) | RANDOM | WHOLE
    assert held == set(METHODS), f"in CASES, RANDOM or WHOLE is no line for {sorted(set(METHODS) - held)}"
    assert {method.space for method in METHODS.values()} == set(Space)


@pytest.mark.parametrize(
    ("name", "knobs"), PARAMETERS, ids=lambda value: value if isinstance(value, str) else json.dumps(value)
)
def test_a_method_is_what_its_paper_says(name, knobs, tmp_path):
    count = _count(name)
    paths = [
        write_lora(tmp_path / f"{n}.safetensors", seed=20 + n, rank=2 + n, names=SMALL) for n in range(count)
    ]
    if name == "model_stock":  # unrelated LoRAs have no stock: give them a common part
        shared = lora_tensors(9, rank=2, names=SMALL)
        for path in paths:
            own = load_file(str(path))
            joined = {}
            for key, value in own.items():
                axis = 1 if "lora_up" in key else 0
                joined[key] = value if value.ndim == 0 else torch.cat([value, shared[key]], axis)
            write(path, joined)
    weights = (
        [0.8, 0.5, -0.6][:count]
        if name not in ("model_stock", "karcher", "nuslerp")
        else [0.8, 0.5, 0.6][:count]
    )
    out = tmp_path / "m.safetensors"
    rank = None if METHODS[name].space != "dense" else "768"
    _merge(name, paths, weights, knobs, out, rank=rank, **FLOAT)
    dense = [dense_of(path) for path in paths]
    wanted = {module: _reference(name)([d[module] for d in dense], weights, **knobs) for module in dense[0]}
    assert relative(dense_of(out), wanted) <= 1e-5


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.space != "dense"])
def test_scalar_and_core_methods_never_exceed_the_sum_of_ranks(name, tmp_path):
    count = _count(name)
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=2 + n) for n in range(count)]
    report = _merge(name, paths, [0.7] * count, {}, tmp_path / "m.safetensors", **FLOAT)
    assert report.ranks()["max"] <= sum(2 + n for n in range(count))
    assert report.energy_kept == pytest.approx(1.0, abs=1e-9)


REAL = (
    "diffusers_sd15_r4_pokemon.safetensors",
    "peft_sd15_r4_alpha16.safetensors",
    "diffusers_oldest_sd15_r4.safetensors",
)


# of each width one block, and the middle: dense methods go through whole matrices, and every block's are alike
SOME = ("IN01", "IN05", "M00", "OUT05", "OUT09")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_merges_real_files(name, loras, tmp_path):
    """Two and, where it takes more, three real files of different key styles; a real module equals the reference."""
    out = tmp_path / "m.safetensors"
    on = set(SOME if METHODS[name].space == "dense" else FAMILIES["SD1"].blocks)
    blocks = {block: float(block in on) for block in FAMILIES["SD1"].blocks}
    counts = {max(2, METHODS[name].sources[0]), _count(name)}
    for count in sorted(counts):
        paths = [loras / file for file in REAL[:count]]
        weights = [0.6, 0.2, 0.5][:count]
        dense = METHODS[name].space == "dense"
        report = _merge(name, paths, weights, {}, out, blocks, rank="16" if dense else None, **FLOAT)
        assert np.isfinite(report.relative_error)
        assert len(report.modules) == 128
        # modules of which the method leaves nothing are left out, and named
        assert name in ("model_stock", "tall_mask") or len(report.left_out) == (88 if dense else 0)
        if dense:
            assert 0 < report.energy_kept <= 1
        else:
            assert report.relative_error <= 1e-5
    if name in CASES and not dense:
        modules = [
            f"lora_unet_{block}_transformer_blocks_0_attn2_to_k"
            for block in ("down_blocks_0_attentions_0", "up_blocks_3_attentions_1")
        ]
        saved = dense_of(out, only=modules)
        for module in modules:
            deltas = []
            for path in paths:
                with open_lora(path) as file:
                    deltas.append(file.modules[module].load(file.file).dense(dtype=torch.float64).numpy())
            settings = METHODS[name].settings({}, len(paths))
            wanted = _reference(name)(deltas, weights, **settings)
            found = saved.get(module, np.zeros_like(wanted))
            assert module in saved or module in report.left_out
            assert relative({module: found}, {module: wanted}) <= 2e-5


def test_norm_preserving_keeps_the_mean_of_the_norms_over_the_whole_lora(tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, size=0.1 * (n + 1)) for n in range(3)]
    weights = [0.8, 0.5, 0.3]
    out = tmp_path / "m.safetensors"
    _merge("norm_preserving", paths, weights, {}, out, **FLOAT)
    dense = [dense_of(path) for path in paths]
    wanted = reference.norm_preserving({n: [d[n] for d in dense] for n in dense[0]}, weights)
    assert relative(dense_of(out), wanted) <= 1e-6


@pytest.mark.parametrize("fraction", [0.2, 0.6])
def test_global_ties_takes_one_threshold_for_the_whole_lora(fraction, tmp_path):
    names = SMALL
    tensors = [lora_tensors(n, names=names, conv=False) for n in range(2)]
    for key in tensors[0]:
        if key.startswith(names[0]) and "lora_up" in key:
            tensors[0][key] = tensors[0][key] * 20
    paths = [write(tmp_path / f"{n}.safetensors", t) for n, t in enumerate(tensors)]
    out = tmp_path / "m.safetensors"
    _merge(
        "ties",
        paths,
        [0.7, 0.4],
        {"trim_scope": "global", "trim_fraction": fraction},
        out,
        rank="768",
        **FLOAT,
    )
    dense = [dense_of(path) for path in paths]
    order = sorted(dense[0])
    flat = [np.concatenate([w * d[n].ravel() for n in order])[None] for d, w in zip(dense, (0.7, 0.4))]
    merged = basic.ties(flat, [1.0, 1.0], fraction, "mass", False)
    share = sum((np.sign(basic.trim(f, fraction)) == np.sign(merged)) * w for f, w in zip(flat, (0.7, 0.4)))
    merged = np.where(merged != 0, merged / np.where(share > 0, share, 1), 0)[0]
    wanted, at = {}, 0
    for n in order:
        size = dense[0][n].size
        wanted[n] = merged[at : at + size].reshape(dense[0][n].shape)
        at += size
    assert relative(dense_of(out), wanted) <= 1e-4


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_dropping_nothing_is_the_method_without_dropping(name, tmp_path):
    paths = [write_lora(tmp_path / f"{n}.safetensors", seed=n, names=SMALL) for n in range(2)]
    out = tmp_path / "m.safetensors"
    knobs = {"drop_rate": 0.0} | ({"epsilon": 0.0} if name == "della" else {})
    rank = "768" if METHODS[name].space == "dense" else None
    _merge(name, paths, [0.7, 0.4], knobs, out, rank=rank, **FLOAT)
    dense = [dense_of(path) for path in paths]
    elected = name in ("dare_ties", "della")
    wanted = {
        n: basic.ties([d[n] for d in dense], [0.7, 0.4], 0.0, "mass", False)
        if elected
        else 0.7 * dense[0][n] + 0.4 * dense[1][n]
        for n in dense[0]
    }
    assert relative(dense_of(out), wanted) <= 1e-5


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_dropping_keeps_the_sum_on_average(name, tmp_path):
    """Over many seeds the mean of unbiased droppings is the method without dropping."""
    # an election is not linear: fewer are dropped, so that the mean stays near
    knobs = {"drop_rate": 0.3 if name in ("dare_ties", "della") else 0.5}
    path = write_lora(tmp_path / "a.safetensors", seed=1, names=SMALL[:2], conv=False)
    out = tmp_path / "m.safetensors"
    rank = "64" if METHODS[name].space == "dense" else None
    total, count = {}, 24
    for seed in range(count):
        _merge(name, [path], [1.0], knobs, out, rank=rank, seed=seed, **FLOAT)
        for module, value in dense_of(out).items():
            total[module] = total.get(module, 0) + value / count
    assert relative(total, dense_of(path)) <= 0.45


@pytest.mark.parametrize("name", METHODS)
def test_identity_scaling_and_emptiness(name, tmp_path):
    """What one LoRA, a doubled ratio or an all-zero LoRA must give, where the method has that property."""
    method = METHODS[name]
    zero = {k: torch.zeros_like(v) if "lora_up" in k else v for k, v in lora_tensors(3).items()}
    path, other = write_lora(tmp_path / "a.safetensors", seed=1), write(tmp_path / "z.safetensors", zero)
    out = tmp_path / "m.safetensors"
    off = {
        "drop_rate": 0.0,
        "epsilon": 0.0,
        "trim_fraction": 0.0,
        "gamma": 0.0,
        "lam": 0.0,
        "guard": False,
        "agree": 1,
        "select": 1.0,
    }
    knobs = {knob.name: off[knob.name] for knob in method.knobs if knob.name in off} | NEUTRAL.get(name, {})
    rank = "768" if method.space == "dense" else None
    before = dense_of(path)
    if method.sources[0] == 1:
        for ratio in (1.0, 0.5, -1.0):
            _merge(name, [path], [ratio], knobs, out, rank=rank, **FLOAT)
            # means over weights give the LoRA itself, or its negative, whatever the ratio
            mean = method.normalised(method.settings(knobs, 1))
            expected = {
                n: (np.sign(ratio) if mean else 1.0 if name == "norm_preserving" and ratio == 1 else ratio)
                * v
                for n, v in before.items()
            }
            if name == "norm_preserving":
                expected = {n: np.sign(ratio) * v for n, v in before.items()}
            assert relative(dense_of(out), expected) <= 1e-5, (
                f"one source alone is not ratio × itself at {knobs or 'the defaults'}: say in NEUTRAL where"
            )
    count = max(2, method.sources[0])
    if name == "model_stock":
        with pytest.raises(OutputError, match="every module of the result is zero"):
            _merge(name, [path, other], [1.0, 1.0], {}, out, **FLOAT)
        return
    report = _merge(name, [path, *[other] * (count - 1)], [1.0] * count, knobs, out, rank=rank, **FLOAT)
    found = dense_of(out)
    assert all(np.isfinite(value).all() for value in found.values())
    size = np.sqrt(sum((v**2).sum() for v in found.values())) / np.sqrt(
        sum((v**2).sum() for v in before.values())
    )
    assert size <= 1.0 + 1e-5  # an empty companion adds nothing
    assert report.relative_error <= 1e-4
    # all empty: zeros, or a refusal to save nothing; never NaN
    try:
        _merge(name, [other] * count, [1.0] * count, knobs, out, rank=rank, **FLOAT)
    except OutputError as error:
        assert "every module of the result is zero" in str(error)
    else:
        assert all(not value.any() for value in dense_of(out).values())


@pytest.mark.parametrize("name", METHODS)
def test_the_wrong_number_of_sources_and_missing_roles_are_one_sentence(name, tmp_path):
    method = METHODS[name]
    path = write_lora(tmp_path / "a.safetensors")
    least, most = method.sources
    for count in (least - 1, (most or 0) + 1 if most else 0):
        if count > 0:
            with pytest.raises(RecipeError, match="takes"):
                _merge(name, [path] * count, [1.0] * count, {}, tmp_path / "m.safetensors")
    if method.roles:
        with pytest.raises(RecipeError, match="needs the roles style and subject"):
            merge([path, path], save_to=tmp_path / "m.safetensors", method=name)
    for knob in method.knobs:
        bad = "nan" if knob.kind in ("number", "whole") else "perhaps"
        with pytest.raises(RecipeError, match=knob.name):
            merge([path, path], save_to=tmp_path / "m.safetensors", method=name, knobs={knob.name: bad})
    assert not (tmp_path / "m.safetensors").exists()


def test_the_command_line_takes_roles_and_knobs(tmp_path):
    paths = [str(write_lora(tmp_path / f"{n}.safetensors", seed=n)) for n in range(2)]
    out = tmp_path / "m.safetensors"
    arguments = [
        "merge",
        "--models",
        *paths,
        "--save_to",
        str(out),
        "--method",
        "np_lora",
        "--roles",
        "subject",
        "style",
        "--knob",
        "mu=2",
    ]
    assert main(arguments) == 0
    dense = [dense_of(path) for path in paths]
    wanted = {n: reference.np_lora([dense[1][n], dense[0][n]], [1.0, 1.0], 2.0) for n in dense[0]}
    assert relative(dense_of(out), wanted) <= 1e-3
