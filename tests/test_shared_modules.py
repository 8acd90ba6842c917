"""Element rules that ask who has a module: `shared_only` and `unique_only`."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from lib_merge import Recipe, Source, merge, verify
from lib_merge.api import run_recipe
from lib_merge.blocks.weights import ElementMatcher, parse_elements
from lib_merge.cli.commands import main
from lib_merge.families import family_of
from lib_merge.recipe import ElementRule, loads
from lib_merge.ui.state import rules_text
from tests.factories import NAMES, dense_of, lora_tensors, relative, write

Q, K, V, FF, TE = NAMES
A, B, C = (Q, K, V), (K, V, FF), (K, TE)


@pytest.fixture
def paths(tmp_path):
    names = {"a": A, "b": B, "c": C}
    return [
        write(tmp_path / f"{name}.safetensors", lora_tensors(seed, names=has, conv=False))
        for seed, (name, has) in enumerate(names.items())
    ]


def _merged(paths, tmp_path, rules, **kw):
    out = tmp_path / "m.safetensors"
    sources = [
        Source(path=path, name=path.name, elements=parse_elements(rule)) for path, rule in zip(paths, rules)
    ]
    merge(sources, save_to=out, save_precision="float", **kw)
    verify(out)
    return dense_of(out)


def _sum(paths, modules):
    """Σ ΔW of each file's given modules."""
    total = {}
    for path, names in zip(paths, modules):
        for name, value in dense_of(path).items():
            if name in names:
                total[name] = total.get(name, 0) + value
    return total


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (("shared_only",) * 3, ((K,), (K,), (K,))),
        (("unique_only",) * 3, ((Q,), (FF,), (TE,))),
        ((":unique_only:0",) * 3, ((K, V), (K, V), (K,))),
        ((":shared_only:0",) * 3, ((Q, V), (V, FF), (TE,))),
        (("shared_only", "", ""), ((K,), B, C)),
        ((":attn2 shared_only:0", "", ":attn1 shared_only:0"), ((Q, V), B, C)),
        ((":NOT attn1 unique_only:0", "", ""), ((Q,), B, C)),
        (("OUT00-OUT11:unique_only:0",) * 3, ((Q, K, V), (K, V), C)),
        ((":unique_only:0,:ff:1",) * 3, ((K, V), (K, V, FF), (K,))),
    ],
)
def test_modules_by_who_has_them(paths, tmp_path, rules, kept):
    found = _merged(paths, tmp_path, rules)
    wanted = _sum(paths, kept)
    assert set(found) == set(wanted)
    assert relative(found, wanted) < 1e-6


def test_a_weight_between(paths, tmp_path):
    found = _merged(paths, tmp_path, (":shared_only:0.25", "", ""))
    a, whole = dense_of(paths[0]), _sum(paths, (A, B, C))
    assert relative({K: found[K]}, {K: whole[K] - 0.75 * a[K]}) < 1e-6
    assert relative({Q: found[Q]}, {Q: whole[Q]}) < 1e-6


def test_in_a_group_the_sources_are_those_of_the_group(paths, tmp_path):
    rules = parse_elements("shared_only")
    inner = Recipe(tuple(Source(path=path, name=path.name, elements=rules) for path in paths[:2]))
    recipe = Recipe(
        (Source(recipe=inner), Source(path=paths[2], name="c", elements=rules)), precision="float"
    )
    run_recipe(recipe, tmp_path / "m.safetensors")
    # the group holds K and V, which A and B share; C shares K with the group
    assert relative(dense_of(tmp_path / "m.safetensors"), _sum(paths, ((K, V), (K, V), (K,)))) < 1e-6


def test_one_source_alone_keeps_everything(paths, tmp_path):
    for rule in ("shared_only", "unique_only"):
        assert set(_merged(paths[:1], tmp_path, (rule,))) == set(A)
        (tmp_path / "m.safetensors").unlink()


def test_pieces_of_a_fused_module_are_shared_with_it(tmp_path):
    fused = {"lora_unet_double_blocks_0_img_attn_qkv": 9216}
    split = {f"transformer.transformer_blocks.0.attn.to_{part}": 3072 for part in "qkv"}
    write(tmp_path / "fused.safetensors", {
        f"{name}.{role}.weight": torch.ones(*shape) for name, out in fused.items()
        for role, shape in (("lora_up", (out, 1)), ("lora_down", (1, 3072)))})  # fmt: skip
    write(tmp_path / "split.safetensors", {
        f"{name}.{role}.weight": torch.ones(*shape) for name, out in split.items()
        for role, shape in (("lora_B", (out, 1)), ("lora_A", (1, 3072)))})  # fmt: skip
    rules = parse_elements(":shared_only:0.5")
    paths = [tmp_path / "fused.safetensors", tmp_path / "split.safetensors"]
    sources = [Source(path=path, name=path.name, elements=rules) for path in paths]
    report = merge(sources, save_to=tmp_path / "m.safetensors", save_precision="float")
    assert report.relative_error < 1e-6
    with safe_open(str(tmp_path / "m.safetensors"), "pt") as file:
        ups = [float(file.get_tensor(key).abs().max()) for key in file.keys() if "up" in key]  # noqa: SIM118
    assert ups
    assert verify(tmp_path / "m.safetensors").relative_error < 1e-6


def test_the_notation_goes_there_and_back():
    assert parse_elements("shared_only, OUT00:ff:0.5\nUnique_Only") == (
        ElementRule("", "NOT shared_only", 0.0), ElementRule("OUT00", "ff", 0.5), ElementRule("", "NOT unique_only", 0.0)
    )  # fmt: skip
    rules = parse_elements(":attn shared_only:0.5,unique_only")
    assert parse_elements(rules_text(rules)) == rules
    recipe = Recipe((Source(name="a", elements=rules),))
    assert loads(recipe.dumps()).sources[0].elements == rules
    assert ElementMatcher(rules, family_of("SD1").blocks, "a").scoped
    assert not ElementMatcher(parse_elements(":attn:0"), family_of("SD1").blocks, "a").scoped


def test_on_the_command_line(paths, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    command = [
        "merge",
        "--models",
        *map(str, paths),
        "--elements",
        "shared_only",
        "unique_only",
        "-",
        "--save_to",
        str(out),
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["modules"]
    assert set(dense_of(out)) == {K, FF, TE}
