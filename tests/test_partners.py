"""The partner files of Wan 2.2: found by name, merged by the same recipe, refused in one sentence where one is missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from lib_merge import Recipe, Source
from lib_merge.cli.commands import main
from lib_merge.errors import RecipeError
from lib_merge.library.partners import Partners, noise_level, partner_stem, partners_of
from lib_merge.ui.operations import open_desk
from tests.factories import write
from tests.test_tab_server import Host, _state, _wait

NAME = "diffusion_model.blocks.0.self_attn.q"


def _wan(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    down = torch.zeros(2, 64)
    down[0, 0] = 1.0
    return write(path, {f"{NAME}.lora_A.weight": down, f"{NAME}.lora_B.weight": torch.full((64, 2), value)})


def _value(path):
    """ΔW[0, 0] of a merge."""
    with safe_open(str(path), "pt") as file:
        keys = list(file.keys())
        down = file.get_tensor(next(key for key in keys if "lora_A" in key or "lora_down" in key))
        up = file.get_tensor(next(key for key in keys if "lora_B" in key or "lora_up" in key))
        alpha = next((float(file.get_tensor(key)) for key in keys if key.endswith("alpha")), down.shape[0])
    return float((up.float() @ down.float())[0, 0]) * alpha / down.shape[0]


def _fill(folder):
    for value, name in ((1, "ink_high_noise"), (2, "ink_low_noise"), (10, "surf_HN"), (20, "surf_LN")):
        _wan(folder / f"{name}.safetensors", float(value))


def _recipe(folder, *names, **kw):
    paths = [folder / f"{name}.safetensors" for name in names]
    return Recipe(tuple(Source(path=path, name=path.name, ratio=0.5, sha256="x") for path in paths), **kw)


def test_every_file_is_exchanged_for_its_partner_and_nothing_else(tmp_path):
    _fill(tmp_path)
    recipe = _recipe(tmp_path, "ink_high_noise", "surf_HN", method="ties", seed=7)
    inner = replace(recipe.sources[1], recipe=_recipe(tmp_path, "surf_HN"), path=None, ratio=0.3)
    nested = replace(recipe, sources=(recipe.sources[0], inner))
    for one in (recipe, nested):
        found = partners_of(one)
        assert [source.path.stem for source in found.recipe.leaves()] == ["ink_low_noise", "surf_LN"]
        assert (found.level, found.both, found.notes) == ("low", (), [])
        assert [source.sha256 for source in found.recipe.leaves()] == ["", ""]
        back = partners_of(found.recipe).recipe
        assert [source.path for source in back.leaves()] == [source.path for source in one.leaves()]
        assert (back.method, back.seed, [s.ratio for s in back.sources]) == (
            "ties",
            7,
            [s.ratio for s in one.sources],
        )


def test_a_file_without_a_level_goes_into_both_and_is_named(tmp_path):
    _fill(tmp_path)
    _wan(tmp_path / "plain.safetensors", 5.0)
    found = partners_of(_recipe(tmp_path, "ink_high_noise", "plain"))
    assert [source.path.stem for source in found.recipe.sources] == ["ink_low_noise", "plain"]
    assert found.notes == ["plain names no noise level: the same file is merged for both levels"]


def test_refusals_are_one_sentence(tmp_path):
    _fill(tmp_path)
    _wan(tmp_path / "lost_high_noise.safetensors", 5.0)
    _wan(tmp_path / "plain.safetensors", 5.0)
    with pytest.raises(RecipeError, match="the partner of lost_high_noise for low noise is not in"):
        partners_of(_recipe(tmp_path, "ink_high_noise", "lost_high_noise"))
    with pytest.raises(RecipeError, match="no source names a noise level"):
        partners_of(_recipe(tmp_path, "plain"))
    with pytest.raises(RecipeError, match="some sources are for high noise and some for low noise"):
        partners_of(_recipe(tmp_path, "ink_high_noise", "surf_LN"))


def test_partners_may_lie_in_another_folder_and_in_other_letters(tmp_path):
    _wan(tmp_path / "high" / "Ink_HIGH_NOISE.safetensors", 1.0)
    low = _wan(tmp_path / "low" / "ink_low_noise.safetensors", 2.0)
    recipe = _recipe(tmp_path / "high", "Ink_HIGH_NOISE")
    with pytest.raises(RecipeError, match="partner"):
        partners_of(recipe)
    assert partners_of(recipe, [tmp_path]).recipe.sources[0].path == low


def test_lone_letters_are_levels_only_beside_their_partner(tmp_path):
    _wan(tmp_path / "surf-H-e8.safetensors", 1.0)
    assert noise_level(_recipe(tmp_path, "surf-H-e8")) == ""
    _wan(tmp_path / "surf-L-e8.safetensors", 2.0)
    assert noise_level(_recipe(tmp_path, "surf-H-e8")) == "high"
    assert partners_of(_recipe(tmp_path, "surf-H-e8")).recipe.sources[0].path.stem == "surf-L-e8"


def test_the_partner_of_a_merge_has_its_name():
    low = Partners(Recipe(()), "low", names={"surf-H-e8": "surf-L-e8"})
    assert partner_stem("mix_high_noise_v1", low) == "mix_low_noise_v1"
    assert partner_stem("ink_HN+surf_HN+HighNoise_v2", low) == "ink_LN+surf_LN+LowNoise_v2"
    assert partner_stem("surf-H-e8_weighted_sum_v1", low) == "surf-L-e8_weighted_sum_v1"
    assert partner_stem("mix", low) == "mix_low_noise"
    assert partner_stem("high_style", low) == "high_style_low_noise"


def test_one_flag_merges_both_on_the_command_line(tmp_path, capsys):
    _fill(tmp_path)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("ink_high_noise", "surf_HN")]
    out = tmp_path / "out" / "mix_high_noise.safetensors"
    out.parent.mkdir()
    command = ["merge", "--models", *files, "--ratios", "0.5", "0.1", "--save_to", str(out), "--partners"]
    assert main(command) == 0
    assert _value(out) == pytest.approx(1.5, rel=1e-3)
    assert _value(out.with_name("mix_low_noise.safetensors")) == pytest.approx(3.0, rel=1e-3)
    assert "mix_low_noise.safetensors" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main([*command[:-2], str(out.with_name("new_high_noise.safetensors")), "--partners"]) == 0


def test_nothing_is_written_where_a_partner_is_missing(tmp_path, capsys):
    _fill(tmp_path)
    (tmp_path / "surf_LN.safetensors").unlink()
    files = [str(tmp_path / f"{name}.safetensors") for name in ("ink_high_noise", "surf_HN")]
    assert (
        main(["merge", "--models", *files, "--save_to", str(tmp_path / "mix.safetensors"), "--partners"]) == 2
    )
    assert "the partner of surf_HN for low noise" in capsys.readouterr().err
    assert not (tmp_path / "mix.safetensors").exists()
    shutil.copy(tmp_path / "surf_HN.safetensors", tmp_path / "surf_LN.safetensors")
    (tmp_path / "mix_low_noise.safetensors").write_bytes(b"mine")
    assert (
        main(["merge", "--models", *files, "--save_to", str(tmp_path / "mix.safetensors"), "--partners"]) == 2
    )
    assert not (tmp_path / "mix.safetensors").exists()
    assert (tmp_path / "mix_low_noise.safetensors").read_bytes() == b"mine"


def test_the_tab_merges_the_partners_of_a_merge(tmp_path):
    host = Host(tmp_path)
    _fill(host.folder)
    desk = open_desk(host)
    desk.library.refresh(wait=True)
    rows = (("0/ink_high_noise.safetensors", 0.5, {}), ("0/surf_HN.safetensors", 0.1, {}))
    state = _state(*rows, output={"template": "mix_high_noise_v{n}", "folder": "merged"})
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": state}))["result"]
    assert done["noise"] == "high"
    low = _wait(desk, desk.handle_dict({"op": "partners", "entry": done["entry"]}))["result"]
    assert low["key"] == "0/merged/mix_low_noise_v1.safetensors"
    assert _value(host.folder / "merged" / low["output"]) == pytest.approx(3.0, rel=1e-3)
    again = desk.handle_dict({"op": "partners", "entry": done["entry"]})
    assert "exists already" in again["error"]
    plain = _state(("0/surf_LN.safetensors", 1.0, {}), output={"template": "one"})
    (host.folder / "surf_HN.safetensors").unlink()
    desk.library.refresh(wait=True)
    done = _wait(desk, desk.handle_dict({"op": "merge", "state": plain}))["result"]
    refused = desk.handle_dict({"op": "partners", "entry": done["entry"]})
    assert "the partner of surf_LN for high noise is not in the folders searched" in refused["error"]
