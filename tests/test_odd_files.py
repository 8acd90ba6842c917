"""Files that trainers and tools really write, and files that nobody should: read, or refused in one sentence."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from lib_merge import Job, merge, open_lora
from lib_merge.adapters.cloneofsimo import cloneofsimo_unet_order, unet_walk
from lib_merge.errors import FileFormatError, MergeError, ModuleError, UnsupportedKindError
from lib_merge.library.inspect import Energies, inspect_file
from lib_merge.library.library import read_facts
from tests.factories import NAMES, dense_of, lora_tensors, write, write_lora
from tests.reference import kinds

CASES = Path(__file__).parents[1].parent / "shared" / "cases"
WAN = "diffusion_model.blocks.0."


@pytest.fixture(scope="module")
def cases():
    if not CASES.is_dir():
        pytest.skip("the folder shared/cases is not beside this checkout")
    return CASES


def _r(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _flux(n=0):
    return {
        f"double_blocks.{n}.processor.qkv_lora1.down.weight": _r(4, 3072),
        f"double_blocks.{n}.processor.qkv_lora1.up.weight": _r(9216, 4),
        f"single_blocks.{n}.processor.qkv_lora.down.weight": _r(4, 3072, seed=1),
        f"single_blocks.{n}.processor.qkv_lora.up.weight": _r(9216, 4, seed=2),
        f"single_blocks.{n}.processor.proj_lora.down.weight": _r(4, 15360, seed=3),
        f"single_blocks.{n}.processor.proj_lora.up.weight": _r(3072, 4, seed=4),
    }


# ---------------------------------------------------------------- weights of one axis


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 1}, {"rank": "energy:0.9"}, {"method": "ties"}, {"method": "core_ties"}, {"prune": 1e-6}],
)
def test_a_change_of_a_norms_weight_is_saved_with_one_axis(options, tmp_path):
    norm = torch.linspace(1, 2, 64)
    one = {
        f"{WAN}self_attn.q.lora_down.weight": _r(2, 5120),
        f"{WAN}self_attn.q.lora_up.weight": _r(5120, 2),
        f"{WAN}self_attn.norm_q.diff": norm,
        f"{WAN}norm3.diff": norm.clone(),
        f"{WAN}norm3.diff_b": norm.clone(),
    }
    a, b = write(tmp_path / "a.safetensors", one), write(tmp_path / "b.safetensors", {**one})
    out = tmp_path / "m.safetensors"
    merge([a, b], ratios=[0.5, 0.25], save_to=out, save_precision="float", family="Wan", **options)
    saved = {
        key.rsplit("blocks_0_", 1)[1]: value for key, value in load_file(str(out)).items() if "norm" in key
    }
    assert {key: tuple(value.shape) for key, value in saved.items()} == {
        "norm3.diff": (64,),
        "norm3.diff_b": (64,),
        "self_attn_norm_q.diff": (64,),
    }
    if "ties" not in options.get("method", ""):
        assert torch.allclose(saved["norm3.diff"], 0.75 * norm, atol=1e-5)


def test_what_is_saved_with_one_axis_is_read_and_merged_again(tmp_path):
    one = lora_tensors(names=NAMES[:2], conv=False) | {
        "lora_unet_conv_norm_out.diff": torch.full((320,), 2.0)
    }
    first = tmp_path / "m.safetensors"
    merge([write(tmp_path / "a.safetensors", one)], save_to=first)
    report = merge([first, first], save_to=tmp_path / "n.safetensors", ratios=[1, 0.5])
    assert torch.equal(
        load_file(str(tmp_path / "n.safetensors"))["lora_unet_conv_norm_out.diff"],
        torch.full((320,), 3.0).half(),
    )
    assert report.relative_error < 1e-3


# ---------------------------------------------------------------- factors under names that loaders know


def test_xlabs_single_blocks_are_rows_of_linear1_and_linear2(tmp_path):
    tensors = _flux()
    path = write(tmp_path / "uso.safetensors", tensors)
    out = tmp_path / "m.safetensors"
    merge([path], save_to=out, save_precision="float")
    found = dense_of(out)
    stem = "single_blocks.0.processor."
    wanted = (tensors[f"{stem}qkv_lora.up.weight"] @ tensors[f"{stem}qkv_lora.down.weight"]).numpy()
    rows = [found[f"lora_transformer_single_transformer_blocks_0_attn_to_{letter}"] for letter in "qkv"]
    np.testing.assert_allclose(np.concatenate(rows), wanted, rtol=1e-4, atol=1e-4)
    linear2 = tensors[f"{stem}proj_lora.up.weight"] @ tensors[f"{stem}proj_lora.down.weight"]
    np.testing.assert_allclose(
        found["lora_unet_single_blocks_0_linear2"], linear2.numpy(), rtol=1e-4, atol=1e-4
    )
    with open_lora(path) as file:
        assert not file.left_out


def test_xlabs_single_blocks_meet_a_fused_linear1(tmp_path):
    kohya = {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": _r(2, 3072),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": _r(21504, 2),
    }
    a, b = write(tmp_path / "a.safetensors", _flux()), write(tmp_path / "b.safetensors", kohya)
    out = tmp_path / "m.safetensors"
    merge([a, b], save_to=out, save_precision="float")
    k = _flux()
    stem = "single_blocks.0.processor.qkv_lora"
    fused = (
        kohya["lora_unet_single_blocks_0_linear1.lora_up.weight"]
        @ kohya["lora_unet_single_blocks_0_linear1.lora_down.weight"]
    )
    wanted = (k[f"{stem}.up.weight"] @ k[f"{stem}.down.weight"])[3072:6144] + fused[3072:6144]
    found = dense_of(out)["lora_transformer_single_transformer_blocks_0_attn_to_k"]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "middle", [".default_1.weight", ".turbo.weight", ".my_adapter-2.weight", "", ".weight"]
)
def test_peft_may_put_any_one_name_before_weight(middle, tmp_path):
    stem = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = _r(4, 768), _r(16, 4)
    path = write(tmp_path / "a.safetensors", {f"{stem}.lora_A{middle}": down, f"{stem}.lora_B{middle}": up})
    with open_lora(path) as file:
        (module,) = file.modules.values()
        assert torch.allclose(module.load(file.file).dense(), up @ down, atol=1e-5)
        assert not file.left_out


def test_two_adapters_in_one_file_are_not_mixed(tmp_path):
    stem = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{stem}.lora_{h}.{n}.weight": torch.ones(4, 4) for h in "AB" for n in ("one", "two")}
    with pytest.raises(ModuleError, match=r"lora_A\.one\.weight and .*lora_A\.two\.weight both mean"):
        open_lora(write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_fp8_factors_are_multiplied_by_their_scales(name, rows, tmp_path):
    if not hasattr(torch, "float8_e4m3fn"):
        pytest.skip("this torch has no fp8")
    up, down = _r(16, 4).to(torch.float8_e4m3fn), _r(4, 768).to(torch.float8_e4m3fn)
    scale = torch.linspace(2, 4, 16)[:, None] if rows else torch.tensor(2.0)
    stem = NAMES[1]
    tensors = {
        f"{stem}.lora_up.weight": up,
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.{name}": scale,
        f"{stem}.lora_down.{name}": torch.tensor([0.5]),
        f"{stem}.lora_up.scale_input": torch.tensor(3.0),
        f"{stem}.alpha": torch.tensor(2.0),
    }
    out = tmp_path / "m.safetensors"
    report = merge(
        [write(tmp_path / "a.safetensors", tensors)], save_to=out, save_precision="float", family="SD1"
    )
    wanted = kinds.lora(up.double() * scale.double(), down.double() * 0.5, 2.0)
    np.testing.assert_allclose(dense_of(out)[stem], wanted, rtol=1e-5, atol=1e-5)
    assert any("1 scales of fp8 inputs are no part of a weight" in note for note in report.warnings)


def test_a_scaled_module_and_a_scale_of_no_factor_are_refused(tmp_path):
    whole = lora_tensors(names=NAMES[:2], conv=False) | {f"{NAMES[0]}.scale_weight": torch.tensor(2.0)}
    with pytest.raises(UnsupportedKindError, match="1 scaled fp8 modules"):
        merge([write(tmp_path / "a.safetensors", whole)], save_to=tmp_path / "m.safetensors")
    stray = lora_tensors(names=NAMES[:2], conv=False) | {
        f"{NAMES[0]}.lora_mid.scale_weight": torch.tensor(2.0)
    }
    with pytest.raises(ModuleError, match="fp8 scale of lora_mid, and no lora_mid"):
        open_lora(write(tmp_path / "b.safetensors", stray))


@pytest.mark.parametrize(
    "key",
    [
        f"{NAMES[0]}.lora_gate.weight",
        "transformer.x.lora_embedding_A",
        "unet.x.processor.id_lora.q.down.weight",
    ],
)
def test_a_factor_of_unknown_meaning_is_never_left_with_a_note_alone(key, tmp_path):
    path = write(tmp_path / "a.safetensors", lora_tensors() | {key: torch.ones(2, 3)})
    with pytest.raises(
        UnsupportedKindError, match=r"a\.safetensors has 1 LoRA weights of unknown meaning .*another LoRA"
    ):
        merge([path], save_to=tmp_path / "m.safetensors")
    report = merge([path], save_to=tmp_path / "m.safetensors", job=Job(drop_unsupported=True))
    assert any(key in name for name in report.left_out)


def test_a_change_of_a_modulation_is_said(tmp_path):
    tensors = {
        f"{WAN}self_attn.q.lora_down.weight": _r(2, 5120),
        f"{WAN}self_attn.q.lora_up.weight": _r(5120, 2),
        f"{WAN}diff_m": torch.ones(1, 6, 8),
    }
    report = merge(
        [write(tmp_path / "a.safetensors", tensors)], save_to=tmp_path / "m.safetensors", family="Wan"
    )
    assert any("modulations (diff_m) were left out" in note for note in report.warnings)


# ---------------------------------------------------------------- kinds by name


def test_kohyas_oft_of_a_fused_layer_is_called_oft(tmp_path):
    stem = "oft_unet_single_blocks_22_linear1"
    tensors = {f"{stem}.oft_blocks.{n}": torch.zeros(4, 16, 16) for n in range(4)} | {
        f"{stem}.alpha": torch.tensor(1.0)
    }
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UnsupportedKindError, match="1 OFT modules: this kind depends on the base model"):
        merge([path], save_to=tmp_path / "m.safetensors")
    with pytest.raises(ModuleError, match=r"has a module that can be merged: .*1 OFT"):
        merge([path], save_to=tmp_path / "m.safetensors", job=Job(drop_unsupported=True))


def _control(**more):
    return {
        "img_in.lora_A.weight": _r(4, 128),
        "img_in.lora_B.weight": _r(3072, 4),
        "double_blocks.0.img_attn.proj.lora_A.weight": _r(4, 3072),
        "double_blocks.0.img_attn.proj.lora_B.weight": _r(3072, 4),
        **more,
    }


@pytest.mark.parametrize(
    "mark",
    [
        {"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(128)},
        {"img_in.reshape_weight": torch.tensor([3072.0, 128.0])},
    ],
    ids=["norms", "reshape"],
)
@pytest.mark.parametrize("drop", [False, True])
def test_a_control_lora_is_called_one(mark, drop, tmp_path):
    path = write(tmp_path / "canny.safetensors", _control(**mark))
    with pytest.raises(UnsupportedKindError, match=r"canny\.safetensors is a control LoRA.*cannot be merged"):
        merge([path], save_to=tmp_path / "m.safetensors", job=Job(drop_unsupported=drop))
    assert not (tmp_path / "m.safetensors").exists()
    assert "control LoRA" in read_facts(path)["problem"]


@pytest.mark.parametrize("last", [False, True])
def test_the_place_of_the_feed_forward_pair_tells_the_walk(last, tmp_path):
    tensors = {}
    for index, (_, out, columns) in enumerate(unet_walk(geglu=True, geglu_last=last)):
        tensors[f"unet:{index}:up"] = torch.full((out, 1), float(index))
        tensors[f"unet:{index}:down"] = torch.ones(1, columns or 768)
    with open_lora(write(tmp_path / "a.safetensors", tensors)) as file:
        order = cloneofsimo_unet_order(geglu_last=last)
        assert [file.modules[name].roles["lora_up"] for name in order] == [
            f"unet:{index}:up" for index in range(144)
        ]
    tensors["unet:7:up"] = torch.ones(321, 1)
    with pytest.raises(ModuleError, match=r"attn2_\w+ should be 320 × \d+ and is 321 × \d+"):
        open_lora(write(tmp_path / "b.safetensors", tensors))


# ---------------------------------------------------------------- files that are something else


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGUF\x03\0\0\0" + bytes(64), "is a GGUF file"),
        (b'{\n  "metadata": {"total_size": 1}, "weight_map": {"a": "b"}}', "is a JSON file"),
        (b"\x1f\x8b\x08\0" + bytes(64), "is a gzip archive: unpack it"),
        (b"Rar!\x1a\x07\x01\0" + bytes(64), "is a RAR archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is a picture"),
    ],
)
def test_what_is_something_else_is_called_what_it_is(content, says, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"x\.safetensors {says}") as error:
        open_lora(path)
    assert "download it again" not in str(error.value)


def test_an_archive_says_what_lies_in_it(tmp_path):
    path = tmp_path / "x.safetensors"
    _zip(path, "readme.txt", "lora/style.safetensors")
    with pytest.raises(
        FileFormatError, match=r"is a ZIP archive: unpack it and give lora/style\.safetensors"
    ):
        open_lora(path)
    _zip(path, "readme.txt")
    with pytest.raises(FileFormatError, match="is a ZIP archive without a LoRA"):
        open_lora(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match="it is no plain file"):
        open_lora(tmp_path / "x.safetensors")


def test_an_offset_of_minus_zero_is_refused_as_safetensors_does(tmp_path):
    raw = save({"a.lora_up.weight": torch.ones(2, 2)})
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].rstrip().replace(b"[0,16]", b"[-0,16]")
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    with pytest.raises(FileFormatError, match="are not whole numbers"):
        open_lora(tmp_path / "x.safetensors")


def test_too_many_axes_are_said(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a.lora_up.weight": torch.ones([1] * 17)})
    with pytest.raises(FileFormatError, match="has 17 axes"):
        open_lora(path)


# ---------------------------------------------------------------- factors that would fill the memory


def _bomb(path, **tensors):
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    return write(path, {f"{stem}.{role}": value for role, value in tensors.items()})


BOMBS = {
    "lokr": {"lokr_w1": torch.ones(16, 2048).half(), "lokr_w2": torch.ones(16, 2048).half()},
    "lokr square": {"lokr_w1": torch.ones(160, 160).half(), "lokr_w2": torch.ones(160, 160).half()},
    "tucker": {
        "lora_up.weight": torch.ones(1, 40000).half(),
        "lora_mid.weight": torch.ones(40000, 1, 1, 1).half(),
        "lora_down.weight": torch.ones(1, 40000).half(),
    },
    "loha": {
        f"hada_w{n}_{h}": torch.ones(*((30000, 1) if h == "a" else (1, 30000))).half()
        for n in "12"
        for h in "ab"
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_factors_may_not_make_a_matrix_that_no_model_has(name, tmp_path):
    path = _bomb(tmp_path / "x.safetensors", **BOMBS[name])
    with pytest.raises(ModuleError, match="no layer of a known model is that large"):
        open_lora(path, "SD1")
    assert read_facts(path)["problem"]


@pytest.mark.parametrize("kind", ["full", "half", "pairs"])
def test_the_norm_of_a_lokr_needs_no_matrix(kind, tmp_path, monkeypatch):
    halves = {
        "full": {"lokr_w1": _r(3, 3), "lokr_w2": _r(6, 256)},
        "half": {"lokr_w1": _r(3, 3), "lokr_w2_a": _r(6, 2), "lokr_w2_b": _r(2, 256)},
        "pairs": {
            "lokr_w1_a": _r(3, 1),
            "lokr_w1_b": _r(1, 3),
            "lokr_w2_a": _r(6, 2),
            "lokr_w2_b": _r(2, 256),
        },
    }[kind]
    path = write(
        tmp_path / "x.safetensors",
        {f"{NAMES[1]}.{role}": value for role, value in halves.items()}
        | {f"{NAMES[1]}.alpha": torch.tensor(3.0)},
    )
    wanted = np.linalg.norm(kinds.lokr(halves, 3.0))
    monkeypatch.setattr(torch, "kron", lambda *_: pytest.fail("multiplied out"))
    assert inspect_file(path, "SD1")["norm"] == pytest.approx(wanted, rel=1e-5)


def test_a_pickle_of_many_lists_ends_early(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x02" + b"]" * (16 << 20))
    with pytest.raises(FileFormatError, match="its program is too long"):
        open_lora(tmp_path / "x.pt")


# ---------------------------------------------------------------- one file never stops the others


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"0": torch.ones(4), "1": torch.ones(4)}, "no matrices"),
        ({f"{NAMES[0]}.lora_mid.weight": torch.tensor(1.0)}, "lora_mid has shape"),
        ({f"{NAMES[2]}.lokr_w1": torch.ones(3, 3), f"{NAMES[2]}.lokr_w2_a": torch.ones(6, 2, 2), f"{NAMES[2]}.lokr_w2_b": torch.ones(2, 6)}, "carries a kernel"),
        ({f"{NAMES[2]}.hada_w{n}_{h}": torch.ones(18, 18, 2) for n in "12" for h in "ab"}, "carries a kernel"),
    ],
)  # fmt: skip
def test_odd_shapes_are_one_sentence(tensors, says, tmp_path):
    base = {} if "0" in tensors else lora_tensors(names=NAMES[:2], conv=False)
    path = write(tmp_path / "x.safetensors", base | tensors)
    with pytest.raises(ModuleError, match=says) as error:
        open_lora(path)
    assert "\n" not in str(error.value)


def test_whatever_goes_wrong_with_one_file_is_its_own_problem(tmp_path, monkeypatch):
    path = write_lora(tmp_path / "x.safetensors")

    def broken(*_):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr("lib_merge.adapters.file.parse_keys", broken)
    with pytest.raises(FileFormatError, match=r"x\.safetensors cannot be understood"):
        open_lora(path)
    assert "cannot be understood" in read_facts(path)["problem"]
    monkeypatch.setattr("lib_merge.library.library.open_lora", broken)
    assert "could not be understood" in read_facts(path)["problem"]
    monkeypatch.setattr("lib_merge.library.inspect.open_lora", broken)

    class Nothing:
        def get(self, *_):
            return None

        def put(self, *_):
            return None

    energies = Energies(Nothing())
    energies.get(path)
    energies._reader.shutdown()
    assert "could not be measured" in energies.get(path)["problem"]


def test_half_a_character_in_a_tag_is_shown_escaped_and_merged(tmp_path):
    path = write_lora(tmp_path / "x.safetensors", metadata={"ss_tag_frequency": '{"x":{"\\ud800":3}}'})
    path.with_suffix(".json").write_text('{"activation text": "a\\ud800"}', encoding="utf-8")
    assert inspect_file(path)["tags"] == ["\\ud800"]
    merge([path], save_to=tmp_path / "m.safetensors")
    with open_lora(tmp_path / "m.safetensors") as file:
        assert json.loads(file.metadata["ss_tag_frequency"]) == {"1_x_x": {"\\ud800": 3}}


def test_every_hostile_file_is_read_or_refused_in_one_sentence(cases):
    for path in sorted((cases / "hostile").iterdir()):
        if path.suffix in (".safetensors", ".pt"):
            read_facts(path)
            try:
                inspect_file(path)
            except MergeError as error:
                assert "\n" not in str(error)
                assert "cannot be understood" not in str(error), path
