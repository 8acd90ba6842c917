"""Every adapter kind against its float64 reference, and through a whole merge."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib_merge import merge, open_lora
from lib_merge.adapters import keys
from lib_merge.adapters.kind import Ending, Layout, LayoutError, MergeableKind
from lib_merge.errors import ModuleError, UnsupportedKindError
from lib_merge.linalg import Dense
from tests.factories import CONV, NAMES, dense_of, lora_tensors, relative, write
from tests.reference import kinds

LIN = NAMES[2]  # 18 × 18


def _r(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def _kind_tensors(kind):
    """Return (module, tensors by role, dense reference)."""
    a = torch.tensor(3.0)
    if kind == "locon":
        t = {"lora_up.weight": _r(12, 4, 1, 1), "lora_down.weight": _r(4, 10, 3, 3), "alpha": a}
        return CONV, t, kinds.lora(t["lora_up.weight"], t["lora_down.weight"], 3.0)
    if kind == "tucker":
        t = {
            "lora_up.weight": _r(12, 4, 1, 1),
            "lora_mid.weight": _r(4, 5, 3, 3),
            "lora_down.weight": _r(5, 10, 1, 1),
        }
        return (
            CONV,
            {**t, "alpha": a},
            kinds.lora(t["lora_up.weight"], t["lora_down.weight"], 3.0, t["lora_mid.weight"]),
        )
    if kind in ("loha", "loha_wide"):
        r = 3 if kind == "loha" else 6  # 36 > 18: past the exact low-rank form
        t = {
            "hada_w1_a": _r(18, r),
            "hada_w1_b": _r(r, 18),
            "hada_w2_a": _r(18, r, seed=1),
            "hada_w2_b": _r(r, 18, seed=1),
        }
        return LIN, {**t, "alpha": a}, kinds.loha(t, 3.0)
    if kind == "loha_conv":  # flattened 3×3
        t = {
            "hada_w1_a": _r(12, 2),
            "hada_w1_b": _r(2, 90),
            "hada_w2_a": _r(12, 2, seed=1),
            "hada_w2_b": _r(2, 90, seed=1),
        }
        return CONV, {**t, "alpha": a}, kinds.loha(t, 3.0)
    if kind == "loha_tucker":
        t = {f"hada_w{n}_a": _r(3, 12, seed=n) for n in (1, 2)} | {
            f"hada_w{n}_b": _r(3, 10, seed=n) for n in (1, 2)
        }
        t |= {f"hada_t{n}": _r(3, 3, 3, 3, seed=n) for n in (1, 2)}
        return CONV, {**t, "alpha": a}, kinds.loha(t, 3.0)
    if kind == "lokr_full":
        t = {"lokr_w1": _r(3, 3), "lokr_w2": _r(6, 6)}
        return LIN, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    if kind == "lokr_half":
        t = {"lokr_w1": _r(3, 3), "lokr_w2_a": _r(6, 2), "lokr_w2_b": _r(2, 6)}
        return LIN, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    if kind == "lokr_pairs":
        t = {"lokr_w1_a": _r(3, 1), "lokr_w1_b": _r(1, 6), "lokr_w2_a": _r(6, 2), "lokr_w2_b": _r(2, 3)}
        return LIN, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    if kind == "lokr_conv":  # today's layout: the kernel in w2
        t = {"lokr_w1": _r(3, 2), "lokr_w2": _r(4, 5, 3, 3)}
        return CONV, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    if kind == "lokr_conv_pair":
        t = {"lokr_w1": _r(3, 2), "lokr_w2_a": _r(4, 2), "lokr_w2_b": _r(2, 45)}
        return CONV, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    if kind == "lokr_tucker":
        t = {"lokr_w1": _r(3, 2), "lokr_t2": _r(2, 2, 3, 3), "lokr_w2_a": _r(2, 4), "lokr_w2_b": _r(2, 5)}
        return CONV, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    if (
        kind == "lokr_2023"
    ):  # the flattened [out, in·kh·kw] matrix as a Kronecker product that splits the kernel
        t = {"lokr_w1_a": _r(3, 1), "lokr_w1_b": _r(1, 6), "lokr_w2_a": _r(4, 2), "lokr_w2_b": _r(2, 15)}
        return CONV, {**t, "alpha": a}, kinds.lokr(t, 3.0)
    t = {"diff": _r(12, 10, 3, 3)}
    return CONV, t, t["diff"].double().flatten(1).numpy()


KINDS = [
    "locon", "tucker", "loha", "loha_wide", "loha_conv", "loha_tucker", "lokr_full", "lokr_half", "lokr_pairs",
    "lokr_conv", "lokr_conv_pair", "lokr_tucker", "lokr_2023", "diff",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_read_as_its_reference_says(kind, tmp_path):
    name, tensors, wanted = _kind_tensors(kind)
    anchor = lora_tensors(names=NAMES[1:2], conv=False)  # tells SD1
    path = write(
        tmp_path / "a.safetensors", anchor | {f"{name}.{role}": value for role, value in tensors.items()}
    )
    with open_lora(path) as file:
        found = file.modules[name].load(file.file).dense(dtype=torch.float64).numpy()
    assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", ["lossless", "3"])
def test_a_kind_merges_with_a_plain_lora(kind, rank, tmp_path):
    name, tensors, wanted = _kind_tensors(kind)
    base = lora_tensors(1, names=NAMES[:3])
    anchor = lora_tensors(names=NAMES[1:2], conv=False)
    a = write(
        tmp_path / "a.safetensors", anchor | {f"{name}.{role}": value for role, value in tensors.items()}
    )
    b = write(tmp_path / "b.safetensors", base)
    out = tmp_path / "m.safetensors"
    report = merge([a, b], ratios=[0.7, -0.4], save_to=out, rank=rank, save_precision="float")
    target = 0.7 * wanted - 0.4 * dense_of(b)[name]
    found = dense_of(out)[name]
    best = np.sqrt((np.linalg.svd(target, compute_uv=False)[3:] ** 2).sum()) if rank == "3" else 0.0
    assert np.linalg.norm(found - target) <= 1.01 * best + 3e-6 * np.linalg.norm(target)
    assert report.relative_error == pytest.approx(
        relative(dense_of(out), {**_sum(dense_of(a), dense_of(b)), name: target}), rel=1e-2, abs=3e-6
    )


def _sum(a, b):
    return {n: 0.7 * a.get(n, 0) - 0.4 * b.get(n, 0) for n in {*a, *b}}


@pytest.mark.slow
def test_the_real_lokr_of_2023_is_the_kronecker_product_of_its_flattened_halves(loras, tmp_path):
    path = loras / "lokr_kohya_sd15_r4.safetensors"
    tensors = load_file(str(path))
    out = tmp_path / "m.safetensors"
    merge([path], save_to=out, save_precision="float")
    saved = load_file(str(out))
    checked = 0
    with open_lora(path) as file:
        for name in sorted(file.modules)[::9]:
            roles = {k.split(".")[1]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
            wanted = kinds.lokr(roles, roles["alpha"])
            found = file.modules[name].load(file.file).dense(dtype=torch.float64).numpy()
            assert found.shape == wanted.shape
            assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)
            if "resnets" in name and "conv1" in name:
                assert saved[f"{name}.lora_down.weight"].shape[2:] == (3, 3)
                checked += 1
    assert checked


@pytest.mark.parametrize(
    ("marks", "kind"),
    [
        ({"lora_up.weight": (18, 4), "lora_down.weight": (4, 18), "dora_scale": (18, 1)}, "DoRA"),
        ({"oft_blocks": (2, 9, 9)}, "OFT"),
        ({"weight": (18,), "on_input": ()}, "IA3"),
        ({f"{n}.weight": (4, 4) for n in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    ],
)
def test_a_kind_that_needs_the_base_is_refused_by_name_and_can_be_left_out(marks, kind, tmp_path):
    from lib_merge import Job

    broken = {f"{LIN}.{role}": torch.ones(shape) for role, shape in marks.items()}
    path = write(tmp_path / "fancy.safetensors", lora_tensors(names=NAMES[:2]) | broken)
    with pytest.raises(UnsupportedKindError, match=rf"fancy\.safetensors.*{kind}") as error:
        merge([path], save_to=tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m.safetensors").exists()
    report = merge([path], save_to=tmp_path / "m.safetensors", job=Job(drop_unsupported=True))
    assert any(LIN in name for name in report.left_out)
    assert LIN not in dense_of(tmp_path / "m.safetensors")


def test_half_a_pair_and_shapes_at_odds_are_named(tmp_path):
    tensors = lora_tensors(names=NAMES[:2], conv=False)
    del tensors[f"{NAMES[0]}.lora_down.weight"]
    with pytest.raises(ModuleError, match=r"a\.safetensors: .*attn1_to_q.*lora_down is missing"):
        merge([write(tmp_path / "a.safetensors", tensors)], save_to=tmp_path / "m.safetensors")
    tensors = lora_tensors(names=NAMES[:2], conv=False)
    tensors[f"{NAMES[0]}.lora_down.weight"] = torch.ones(5, 20)
    with pytest.raises(ModuleError, match=r"do not multiply"):
        merge([write(tmp_path / "b.safetensors", tensors)], save_to=tmp_path / "m.safetensors")


def test_biases_norms_and_embeddings_ride_along(tmp_path):
    one = lora_tensors(names=NAMES[:2], conv=False) | {
        f"{NAMES[0]}.diff_b": torch.full((24,), 2.0),
        "lora_unet_conv_norm_out.w_norm": torch.full((320,), 1.0),
        "lora_unet_conv_norm_out.b_norm": torch.full((320,), 4.0),
        "bundle_emb.sks.string_to_param.*": torch.ones(2, 768),
    }
    two = lora_tensors(1, names=NAMES[:2], conv=False) | {f"{NAMES[0]}.diff_b": torch.full((24,), 10.0)}
    a, b = write(tmp_path / "a.safetensors", one), write(tmp_path / "b.safetensors", two)
    out = tmp_path / "m.safetensors"
    report = merge([a, b], ratios=[0.5, 0.25], save_to=out, save_precision="float")
    saved = load_file(str(out))
    assert torch.allclose(saved[f"{NAMES[0]}.diff_b"], torch.full((24,), 3.5))
    assert torch.allclose(saved["lora_unet_conv_norm_out.w_norm"], torch.full((320,), 0.5))
    assert torch.equal(saved["bundle_emb.sks.string_to_param.*"], torch.ones(2, 768))
    assert report.copied == ["bundle_emb.sks.string_to_param.*"]


# ---------------------------------------------------------------- a kind of one's own


class _Gate(MergeableKind):
    """ΔW = g · W: a gate for every row of the unchanged weight."""

    name = "Gate"
    marks = frozenset({"gate"})
    endings = MappingProxyType({"gate": Ending("gate", "toys")})
    needs_base = True

    def sides(self, shapes):
        return (shapes["gate"] or (0,))[0], 0

    def layout(self, shapes):
        if len(shapes["gate"]) != 2:
            message = f"gate has shape {list(shapes['gate'])}"
            raise LayoutError(message)
        return Layout("Gate", shapes["gate"][0], 18, (), 0)

    def load(self, tensors, scale, base):
        return Dense(1.0 if scale is None else scale, tensors["gate"].float() * base().flatten(1))


class _Base:
    """Reads base weights, and remembers which."""

    def __init__(self, weights):
        self.weights, self.read = weights, []

    def weight(self, name, rows):
        self.read.append((name, rows))
        whole = self.weights[name]
        return whole if rows is None else whole[slice(*rows)]


@pytest.fixture
def gates():
    kind = _Gate()
    keys.register(kind)
    yield kind
    keys.unregister(kind)


def _gated(tmp_path, module=LIN, rows=18):
    gate = _r(rows, 1, seed=5)
    return gate, write(
        tmp_path / "g.safetensors", lora_tensors(names=NAMES[1:2], conv=False) | {f"{module}.gate": gate}
    )


def test_a_kind_that_needs_the_base_gets_it_when_the_file_is_settled(gates, tmp_path):
    gate, path = _gated(tmp_path)
    weight = _r(18, 18, seed=6)
    base = _Base({LIN: weight})
    with open_lora(path) as file:
        assert file.left_out == {LIN: "Gate"}  # opened without a base model
        with pytest.raises(UnsupportedKindError, match="1 Gate modules: this kind depends on the base model"):
            file.settled("SD1")
        settled = file.settled("SD1", base=base)
        assert settled.left_out == {}
        assert base.read == []  # bound, and not read yet
        assert settled.modules[NAMES[1]].base is None  # what needs no base holds none
        # the call of everybody who wants a ΔW, for whatever kind
        found = settled.parts()[LIN].load(settled.file).dense()
        assert torch.allclose(found.float(), gate * weight)
        assert base.read == [(LIN, None)]


def test_the_base_of_a_piece_is_its_rows_and_of_a_swapped_module_in_its_files_order(gates, tmp_path):
    piece, swapped = "transformer.transformer_blocks.0.attn.to_k", "transformer.norm_out.linear"
    gate, halves = _r(3072, 1), _r(8, 1, seed=1)
    path = write(tmp_path / "f.safetensors", {f"{piece}.gate": gate, f"{swapped}.gate": halves})
    fused, norm = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_final_layer_adaLN_modulation_1"
    weights = {fused: _r(9216, 18), norm: _r(8, 18, seed=2)}
    base = _Base(weights)
    with open_lora(path) as file:
        parts = file.settled("Flux", base=base).parts()
        key = "lora_transformer_transformer_blocks_0_attn_to_k"
        assert torch.allclose(parts[key].load(file.file).dense().float(), gate * weights[fused][3072:6144])
        assert (fused, (3072, 6144)) in base.read
        # the file's gates are in diffusers' order of halves, the saved ΔW in the loaders'
        expected = torch.cat([halves[4:], halves[:4]]) * weights[norm]
        assert torch.allclose(parts[norm].load(file.file).dense().float(), expected)


def test_an_adapters_weights_that_no_kind_reads_are_refused(tmp_path):
    _, path = _gated(tmp_path)
    with open_lora(path) as file:
        assert file.left_out == {f"{LIN}.gate": "LoRA weights of unknown meaning"}
        with pytest.raises(UnsupportedKindError, match=rf"1 LoRA weights of unknown meaning \({LIN}\.gate\)"):
            file.settled("SD1")


def test_two_kinds_may_not_read_one_key_ending_differently():
    class Thief(_Gate):
        name = "Thief"
        endings = MappingProxyType({"alpha": Ending("stolen")})

    with pytest.raises(ValueError, match="Thief: keys that end in alpha are alpha already"):
        keys.register(Thief())
    assert all(kind.name != "Thief" for kind in keys.KINDS)


@pytest.mark.parametrize("kind", keys.KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_told_by_the_keys_it_brings(kind):
    roles = {ending.role for ending in kind.endings.values()}
    assert kind.marks <= roles
    for role in kind.marks - set(kind.only_beside):
        assert keys.kind_of({role, "alpha"}) is kind
    assert isinstance(kind, MergeableKind) or kind.needs_base
    for role, other in kind.only_beside.items():
        assert {role, other} <= roles


@pytest.mark.parametrize("kind", KINDS)
def test_the_sides_that_single_tensors_show_are_those_of_the_whole(kind):
    name, tensors, wanted = _kind_tensors(kind)
    if name == CONV:
        return
    shapes = {role.removesuffix(".weight"): tuple(value.shape) for role, value in tensors.items()}
    assert keys.sides(shapes) == wanted.shape


@pytest.mark.parametrize("shape", [(), (0,), (3,), (3, 0), (1, 2, 3, 4, 5)])
def test_no_shape_of_a_file_upsets_the_telling_of_sides(shape):
    """A family is told from sides before any layout is checked."""
    for kind in keys.KINDS:
        for role in kind.marks:
            rows, columns = kind.sides({role: shape})
            assert rows >= 0
            assert columns >= 0
