"""Files whose header is fine and whose tensors are not: named in one sentence, or read as what they are."""

from __future__ import annotations

import json

import pytest
import torch

from lib_merge import METHODS, Job, Source, merge, open_lora, verify
from lib_merge.cli.commands import main
from lib_merge.errors import ModuleError, NumericsError, VerifyError
from tests.factories import NAMES, dense_of, lora_tensors, relative, write, write_lora

KEY = f"{NAMES[0]}.lora_up.weight"
FLOAT = {"save_precision": "float", "job": Job(overwrite=True, side_car=False)}


def _broken(folder, value=float("nan"), key=KEY):
    tensors = lora_tensors(3)
    tensors[key].view(-1)[1] = value
    return write(folder / "broken.safetensors", tensors)


def _sources(name, paths):
    roles = (list(METHODS[name].roles) + [None] * len(paths))[: len(paths)]
    return [Source(path=path, name=path.name, role=role) for path, role in zip(paths, roles)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_method_loses_a_nan_or_infinity(name, value, tmp_path):
    """Elections, masks and clipped cosines would turn it into a number; a decomposition would fail on it."""
    paths = [write_lora(tmp_path / "a.safetensors", seed=1), _broken(tmp_path, value)]
    out = tmp_path / "m.safetensors"
    with pytest.raises(NumericsError, match=rf"broken\.safetensors is broken: {KEY} holds NaN or infinity"):
        merge(_sources(name, paths), save_to=out, method=name)
    assert not out.exists()


@pytest.mark.parametrize("options", [{"prune": 0.01}, {"rank": "budget:1MB"}, {"rank": "energy:0.9"}])
def test_a_nan_is_named_before_ranks_are_chosen(options, tmp_path):
    with pytest.raises(NumericsError, match=r"broken\.safetensors is broken"):
        merge([_broken(tmp_path)], save_to=tmp_path / "m.safetensors", **options)


def test_a_nan_in_a_source_of_no_weight_does_not_matter(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", seed=1)
    out = tmp_path / "m.safetensors"
    for name in ("weighted_sum", "ties", "core_ties"):
        merge([path, _broken(tmp_path)], ratios=[1.0, 0.0], save_to=out, method=name, rank="16", **FLOAT)
        assert all(torch.isfinite(torch.from_numpy(value)).all() for value in dense_of(out).values())


def test_inspect_lists_broken_modules_as_valid_json(tmp_path, capsys):
    path = _broken(tmp_path)
    assert main(["inspect", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["broken"] == [NAMES[0]]
    assert found["norm"] > 0
    assert main(["inspect", str(path)]) == 0
    assert "1 modules hold NaN or infinity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("role", "value", "says"),
    [
        ("alpha", torch.tensor([1.0, 2.0]), r"alpha has shape \[2\], and an alpha is one number"),
        ("alpha", torch.empty(0), r"alpha has shape \[0\], and an alpha is one number"),
        ("lora_up.weight", torch.ones(24, 4, dtype=torch.int32), r"holds I32 numbers \[24, 4\], which are no LoRA weights"),
        ("lora_down.weight", torch.ones(4, 20, dtype=torch.bool), r"holds BOOL numbers \[4, 20\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_weight_or_an_alpha_is_refused_when_the_file_is_opened(
    role, value, says, tmp_path, capsys
):
    tensors = lora_tensors(1)
    tensors[f"{NAMES[0]}.{role}"] = value
    path = write(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(ModuleError, match=rf"odd\.safetensors: {NAMES[0]}\.{role} ?.*{says.split(' ')[0]}"):
        open_lora(path)
    with pytest.raises(ModuleError, match=says):
        merge([path], save_to=tmp_path / "m.safetensors")
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "alpha", [torch.tensor([2.0]), torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16)]
)
def test_an_alpha_of_any_type_and_one_number_counts(alpha, tmp_path):
    tensors = lora_tensors(1)
    wanted = dense_of(write(tmp_path / "a.safetensors", tensors))
    tensors = {key: alpha.clone() if key.endswith("alpha") else value for key, value in tensors.items()}
    out = tmp_path / "m.safetensors"
    merge([write(tmp_path / "b.safetensors", tensors)], save_to=out, **FLOAT)
    assert relative(dense_of(out), wanted) < 1e-7


@pytest.mark.parametrize("alpha", [0.0, -3.0])
def test_an_alpha_of_zero_is_nothing_and_a_negative_one_turns_the_sign(alpha, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", seed=1, alpha=alpha)
    other = write_lora(tmp_path / "b.safetensors", seed=2)
    out = tmp_path / "m.safetensors"
    merge([path, other], ratios=[0.5, 1.0], save_to=out, **FLOAT)
    wanted = {name: 0.5 * value + dense_of(other)[name] for name, value in dense_of(path).items()}
    assert relative(dense_of(out), wanted) < 1e-6


EIGHT = [getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "float"])
@pytest.mark.parametrize("dtype", [*EIGHT, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rank", ["lossless", "3"])
def test_weights_of_any_float_type_are_merged(dtype, precision, rank, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", seed=1, dtype=torch.float32)
    tensors = {k: v.to(dtype) if "weight" in k else v for k, v in lora_tensors(2).items()}
    other = write(tmp_path / "b.safetensors", tensors)
    plain = write(tmp_path / "plain.safetensors", {key: value.float() for key, value in tensors.items()})
    outs = []
    for second in (other, plain):
        out = tmp_path / f"m-{second.stem}.safetensors"
        merge([path, second], ratios=[0.6, 0.7], rank=rank, save_to=out, save_precision=precision)
        verify(out)
        outs.append(dense_of(out))
    assert relative(outs[0], outs[1]) <= {"fp16": 1e-3, "bf16": 8e-3, "float": 1e-6}[precision]


def test_mixed_float_types_within_one_module_are_merged(tmp_path):
    tensors = {
        k: v.bfloat16() if "lora_up" in k else v.half() if "lora_down" in k else v
        for k, v in lora_tensors(2).items()
    }
    path = write(tmp_path / "a.safetensors", tensors)
    out = tmp_path / "m.safetensors"
    merge([path], ratios=[0.7], save_to=out, **FLOAT)
    assert relative(dense_of(out), {name: 0.7 * value for name, value in dense_of(path).items()}) < 1e-6


def test_a_merged_file_that_broke_later_differs_from_its_recipe(tmp_path, capsys):
    from safetensors import safe_open
    from safetensors.torch import load_file

    out = tmp_path / "m.safetensors"
    merge([write_lora(tmp_path / "a.safetensors", seed=1)], save_to=out)
    with safe_open(str(out), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(out))
    tensors[KEY][0, 0] = float("nan")
    write(out, tensors, metadata)
    with pytest.raises(VerifyError, match=rf"{NAMES[0]}.*holds NaN or infinity"):
        verify(out)
    assert main(["verify", str(out)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
