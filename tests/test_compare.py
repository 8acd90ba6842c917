"""The comparison script against a recording stand-in of the WebUI's processing API."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lib_merge.errors import MergeError, RecipeError
from lib_merge.recipe import Recipe, Source
from lib_merge.ui.actions import Actions
from tests.factories import write_lora
from tests.test_tab_server import PAIR, Host, _state

columns = pytest.importorskip("lib_merge.webui.columns", reason="needs fastapi, as every WebUI has it")
compare = pytest.importorskip("lib_merge.webui.compare")
live = pytest.importorskip("lib_merge.webui.live")
PIL = pytest.importorskip("PIL.Image")


class Processing:
    def __init__(self):
        self.prompt, self.seed, self.width, self.height = "a cat", 5, 8, 8
        self.n_iter = self.batch_size = 3
        self.outpath_grids = "grids"
        self.extra_generation_params = {}
        self.do_not_save_samples = False


class World:
    """modules.*, network and networks as far as the script uses them."""

    def __init__(self, monkeypatch):
        self.made, self.saved, self.fail, self.stop_after = [], [], None, None
        processing = types.ModuleType("modules.processing")
        processing.fix_seed = lambda p: None
        processing.process_images = self.process
        processing.Processed = lambda p, images, seed, info: types.SimpleNamespace(
            images=images, infotexts=[], info=info, comments=""
        )
        images = types.ModuleType("modules.images")
        images.image_grid = self.sheet
        images.GridAnnotation = lambda text: text
        images.draw_grid_annotations = self.annotate
        images.save_image = lambda image, path, name, **more: self.saved.append((image, more["info"]))
        self.state = types.SimpleNamespace(interrupted=False, stopping_generation=False, job_count=0)
        shared = types.ModuleType("modules.shared")
        shared.state, shared.opts = self.state, types.SimpleNamespace(data={})
        modules = types.ModuleType("modules")
        modules.processing, modules.images, modules.shared = processing, images, shared
        networks = types.ModuleType("networks")
        networks.available_networks, networks.available_network_aliases = {}, {}
        network = types.ModuleType("network")
        network.NetworkOnDisk = lambda name, path: types.SimpleNamespace(name=name, filename=path, alias=name)
        self.networks = networks
        for name, module in (
            ("modules", modules),
            ("modules.processing", processing),
            ("modules.images", images),
            ("modules.shared", shared),
            ("networks", networks),
            ("network", network),
        ):
            monkeypatch.setitem(sys.modules, name, module)

    def process(self, p):
        for tag in p.prompt.split("<lora:")[1:]:
            name = tag.split(":")[0]
            assert Path(self.networks.available_network_aliases[name].filename).is_file()
        assert p.n_iter == p.batch_size == 1
        self.made.append((p.prompt, p.seed, dict(p.extra_generation_params)))
        if self.fail and self.fail(p):
            raise RuntimeError("out of memory")
        if self.stop_after == len(self.made):
            self.state.interrupted = True
        self.networks.available_networks.clear()  # as a refresh of the WebUI's list does
        self.networks.available_network_aliases.clear()
        image = PIL.new("RGB", (8, 8), (10 * p.prompt.count("<lora:"), 0, 0))
        text = f'{p.prompt}\nSteps: 2, Merge column: {p.extra_generation_params["Merge column"]}, Lora hashes: "{live.PREFIX}00ff: 12ab"'
        return types.SimpleNamespace(images=[image], infotexts=[text])

    def sheet(self, pictures, rows):
        self.shape = (rows, len(pictures) // rows)
        return PIL.new("RGB", (8 * self.shape[1], 8 * rows))

    def annotate(self, sheet, width, height, above, beside):
        self.above, self.beside = above, beside
        return sheet


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


@pytest.fixture
def desk(tmp_path):
    host = Host(tmp_path)
    write_lora(host.folder / "a.safetensors", seed=1, metadata={"modelspec.trigger_phrase": "ink"})
    write_lora(host.folder / "sub" / "b.safetensors", seed=2)
    compare._live.clear()
    return Actions(host)


def _asked(**more):
    return {
        "state": json.dumps(_state(*PAIR)),
        "columns": list(columns.CHOICES),
        "variants": "",
        "strengths": "",
        "prompts": "",
        "seeds": "",
        **more,
    }


def test_a_grid_of_everything(world, desk):
    done = compare.run_comparison(
        Processing(),
        desk,
        _asked(variants="core_ties, 0.3/0.7", strengths="0.5", prompts="{trigger}, a cat\na dog", seeds="1, 2"),
    )
    assert world.state.job_count == 4 * 8
    assert world.shape == (4, 8)
    assert [cell[0] for cell in world.above] == [
        "no LoRA",
        "a 0.6",
        "b 0.4",
        "stack",
        "merge: Weighted sum",
        "Core-space TIES",
        "0.3/0.7",
        "merge × 0.5",
    ]
    assert len(done.images) == 1 + 32
    prompts = [prompt for prompt, _, _ in world.made]
    assert prompts[0] == "ink, a cat"
    assert prompts[3].count("<lora:") == 2
    assert {seed for _, seed, _ in world.made} == {1, 2}
    assert all("lora-merge-live" not in text for text in done.infotexts)
    assert "Lora hashes" not in done.infotexts[-1]
    assert "Merge column: merge × 0.5" in done.infotexts[-1]
    assert len(world.saved) == 33
    assert "0.000 ± 0.000 grey levels" in done.comments
    assert not list((desk.host.data_folder() / "live").iterdir())
    assert not world.networks.available_networks


def test_one_broken_cell_and_an_interrupt_keep_the_rest(world, desk):
    world.fail = lambda p: p.prompt.count("<lora:") == 2
    done = compare.run_comparison(Processing(), desk, _asked())
    assert len(done.images) == 1 + 4
    assert "failed: RuntimeError: out of memory" in done.comments
    world.fail, world.made, world.stop_after = None, [], 2
    done = compare.run_comparison(Processing(), desk, _asked())
    assert len(done.images) == 1 + 2
    assert len(world.made) == 2
    assert not list((desk.host.data_folder() / "live").iterdir())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"state": ""}, "set up a merge"),
        ({"state": "[]"}, "set up a merge"),
        ({"state": json.dumps(_state())}, "pick a LoRA"),
        ({"state": json.dumps(_state(("0/gone.safetensors", 1, {})))}, "not in the LoRA folders"),
        ({"columns": []}, "at least one column"),
        ({"variants": "nonsense"}, "neither a method nor ratios"),
        ({"variants": "0.1/0.2/0.3"}, "3 for 2 sources"),
        ({"strengths": "strong"}, "not a number"),
        ({"seeds": "x"}, "not a number"),
        ({"prompts": "a\n" * 300, "seeds": "1,2"}, "too many rows"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_picture(world, desk, fields, sentence):
    with pytest.raises(MergeError, match=sentence):
        compare.run_comparison(Processing(), desk, _asked(**fields))
    assert not world.made
    assert not list((desk.host.data_folder() / "live").glob("*"))


def test_live_merges_are_made_once_and_swept(world, tmp_path):
    path = write_lora(tmp_path / "a.safetensors")
    files = live.LiveMerges(tmp_path / "live")
    recipe = Recipe((Source(path=path, name="a", ratio=0.5),))
    name = files.make(recipe)
    saved = tmp_path / "live" / f"{name}.safetensors"
    stamp = saved.stat().st_mtime_ns
    assert files.make(recipe) == name
    assert saved.stat().st_mtime_ns == stamp
    write_lora(path, seed=4, rank=5)
    assert files.make(recipe) != name
    files.show()
    assert set(world.networks.available_networks) == {name, *world.networks.available_networks}
    live.LiveMerges(tmp_path / "live")  # another process, after a crash
    assert not list((tmp_path / "live").iterdir())


def test_a_stronger_merge_scales_the_text_encoder_too():
    recipe = Recipe((Source(name="a", path=Path("a"), ratio=0.5, te_ratio=(0.2, 0.4)),))
    [one] = [c for c in columns.plan_columns(recipe, [], "", "2") if c.recipes]
    assert one.recipes[0].sources[0].ratio == 1.0
    assert one.recipes[0].sources[0].te_ratio == (0.4, 0.8)
    with pytest.raises(RecipeError):
        columns.plan_columns(recipe, [], "slerp", "")  # takes two sources


def test_figures_are_distances_to_the_stack():
    def cell(value):
        return compare.Cell(PIL.fromarray(np.full((4, 4, 3), value, np.uint8)), seconds=2.0)

    grid = compare.Grid(
        [columns.Column("stack"), columns.Column("merge")], [], [[cell(10), cell(14)], [cell(0), cell(2)]]
    )
    stack, merge = compare.figures(grid)
    assert (stack["difference"], merge["difference"], merge["spread"], merge["seconds"]) == (0.0, 3.0, 1.0, 2.0)
