"""The comparison script and live merges against a recording stand-in of the WebUI's processing API."""

from __future__ import annotations

import copy
import json
import re
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from lib_merge.errors import MergeError, RecipeError
from lib_merge.kept.archive import Archive
from lib_merge.kept.database import NAME, Database
from lib_merge.recipe import Recipe, Source
from lib_merge.ui.operations import open_desk
from lib_merge.ui.state import tab_state, to_recipe
from tests.factories import write_lora
from tests.test_tab_server import PAIR, Host, _state

pytest.importorskip("fastapi", reason="every WebUI has it")
PIL = pytest.importorskip("PIL.Image")

from lib_merge import recipe_edits  # noqa: E402
from lib_merge.webui import axes  # noqa: E402
from lib_merge.webui.compare import columns, panel, pictures, rows, run, script  # noqa: E402
from lib_merge.webui.live import merges, prompts  # noqa: E402
from lib_merge.webui.live import script as live_script  # noqa: E402
from lib_merge.webui.refusal import LoraMergeRefusal  # noqa: E402

ALL = list(columns.CHOICES)


class Params:
    def __init__(self, items):
        self.items = items


def parse_prompt(prompt):
    found = defaultdict(list)

    def take(match):
        found[match[1]].append(Params(match[2].split(":")))
        return ""

    return re.sub(r"<(\w+):([^>]+)>", take, prompt), found


class Runner:
    """The always-on script between the WebUI and our hooks, as the script runner calls it."""

    lora_merge_setup = True

    def __init__(self, setup):
        self.alwayson_scripts = [self]
        self.args_from, self.args_to = 1, 3
        self.args = [0, setup, ""]


class Processing:
    def __init__(self, setup="", **more):
        self.prompt, self.seed, self.width, self.height, self.steps = "a cat", 5, 16, 16, 2
        self.n_iter = self.batch_size = 3
        self.sampler_name, self.cfg_scale = "Euler", 7
        self.outpath_grids = "grids"
        self.extra_generation_params = {}
        self.comments = {}
        self.enable_hr = False
        self.scripts = Runner(setup)
        self.script_args = self.scripts.args
        for name, value in more.items():
            setattr(self, name, value)

    def comment(self, text):
        self.comments[text] = 1

    def init(self, prompts, seeds, subseeds):
        """Called by the WebUI itself: what is raised here is not caught."""


class World:
    """modules.*, network and networks as far as the scripts use them; generates as A1111 does."""

    def __init__(self, monkeypatch, desk):
        self.desk, self.made, self.saved, self.fail, self.stop_after = desk, [], [], None, None
        self.model = types.SimpleNamespace(is_sd1=True)
        processing = types.ModuleType("modules.processing")
        processing.fix_seed = lambda p: None
        processing.process_images = self.process
        processing.Processed = lambda p, images, seed, info: types.SimpleNamespace(
            images=images, infotexts=[], info=info, comments="", index_of_first_image=0
        )
        images = types.ModuleType("modules.images")
        images.image_grid = self.sheet
        images.GridAnnotation = lambda text: text
        images.draw_grid_annotations = self.annotate
        images.save_image = lambda image, path, name, **more: self.saved.append((image, more["info"]))
        self.state = types.SimpleNamespace(
            interrupted=False, stopping_generation=False, job_count=0, job="", textinfo=None
        )
        shared = types.ModuleType("modules.shared")
        shared.state, shared.opts = self.state, types.SimpleNamespace(data={})
        extra = types.ModuleType("modules.extra_networks")
        extra.parse_prompt = parse_prompt
        models = types.ModuleType("modules.sd_models")
        models.model_data = types.SimpleNamespace(sd_model=self.model)
        scripts = types.ModuleType("modules.scripts")
        modules = types.ModuleType("modules")
        modules.processing, modules.images, modules.shared, modules.scripts = (
            processing,
            images,
            shared,
            scripts,
        )
        networks = types.ModuleType("networks")
        networks.available_networks, networks.available_network_aliases = {}, {}
        networks.list_available_networks = self.list_available_networks
        network = types.ModuleType("network")
        network.NetworkOnDisk = type("NetworkOnDisk", (), {})
        self.networks, self.scripts = networks, scripts
        for module in (modules, processing, images, shared, extra, models, scripts, networks, network):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def process(self, p):
        """The order of A1111's process_images_inner, for one or more batches of one picture."""
        setup = prompts.setup_of(p)
        live_script.preview(p, self.desk, setup)
        p.all_prompts = [p.prompt] * (p.n_iter * p.batch_size)
        p.all_hr_prompts = [p.prompt] * (p.n_iter * p.batch_size) if p.enable_hr else []
        prompts.prepare(p, self.desk, setup)
        p.init(p.all_prompts, [], [])
        pictures, texts = [], []
        for batch in range(p.n_iter):
            own = p.all_prompts[batch * p.batch_size : (batch + 1) * p.batch_size]
            prompts.before_batch(p, self.desk, batch, own)
            if not own:
                break
            text, data = parse_prompt(own[0])
            loaded = [params.items for params in data["lora"]]
            assert not data.get("merge")
            loaded = self.load_networks(loaded)
            for name, *_ in loaded:
                if name.startswith(merges.PREFIX):
                    entry = self.networks.available_network_aliases[name]
                    assert Path(entry.filename).is_file()
                    assert not entry.shorthash
            if p.enable_hr:
                p.hr_extra_network_data = parse_prompt(p.all_hr_prompts[0])[1]
            prompts.after_activation(p, self.desk, batch)
            self.made.append((text.strip(), p.seed, loaded, dict(p.extra_generation_params), p))
            if self.fail and self.fail(loaded):
                raise RuntimeError("out of memory")
            if self.stop_after == len(self.made):
                self.state.interrupted = True
            self.networks.available_network_aliases.clear()  # as a refresh of the WebUI's list does
            pictures.append(PIL.new("RGB", (p.width, p.height), (10 * len(loaded), 0, 0)))
            keys = ", ".join(
                f"{key}: {run.quoted(value)}" for key, value in p.extra_generation_params.items()
            )
            texts.append(f"{p.prompt}\nSteps: 2, {keys}")
        return types.SimpleNamespace(images=pictures, infotexts=texts or [""])

    def list_available_networks(self):
        """Forget every name that is not in the folders, as every WebUI does."""
        for table in (self.networks.available_networks, self.networks.available_network_aliases):
            table.clear()
            for path in self.desk.host.folder.rglob("*.safetensors"):
                table[path.stem] = types.SimpleNamespace(filename=str(path), alias=path.stem)

    def load_networks(self, loaded):
        """Look names up as A1111 does: an unknown one lists the folders anew, in the middle of it."""
        aliases = self.networks.available_network_aliases
        if any(name not in aliases for name, *_ in loaded):
            self.list_available_networks()
        return [items for items in loaded if items[0] in aliases]

    def sheet(self, pictures, rows):
        self.shape = (rows, len(pictures) // rows)
        return PIL.new("RGB", (16 * self.shape[1], 16 * rows))

    def annotate(self, sheet, width, height, above, beside):
        self.above, self.beside = above, beside
        return sheet


@pytest.fixture
def desk(tmp_path):
    host = Host(tmp_path)
    write_lora(host.folder / "a.safetensors", seed=1, metadata={"modelspec.trigger_phrase": "ink"})
    write_lora(host.folder / "sub" / "b.safetensors", seed=2)
    (host.folder / "a.json").write_text('{"preferred weight": 0.7}')
    for live in prompts._live.values():
        live.clear()
    prompts._live.clear()
    found = open_desk(host)
    found.library.refresh(wait=True)
    return found


@pytest.fixture
def world(monkeypatch, desk):
    return World(monkeypatch, desk)


SETUP = json.dumps(_state(*PAIR))


def _asked(**more):
    return {"columns": list(columns.TICKED), **more}


def _files(desk):
    return [path.name for path in (desk.host.data_folder() / "live").rglob("*.safetensors")]


def test_a_grid_of_everything(world, desk):
    done = run.run_comparison(
        Processing(SETUP),
        desk,
        _asked(
            columns=ALL,
            methods=["core_ties"],
            ratios="0.3/0.7",
            ranks="2",
            presets="A:OUTALL+B:INALL",
            strengths="0.5, 1",
            prompts="{trigger}, a cat\na dog",
            seeds="1, 2",
            maps=True,
        ),
    )
    labels = [cell[0] for cell in world.above]
    assert [one["label"] for one in desk.comparisons.get(desk.comparisons.newest())["columns"]] == [
        "no LoRA", "a 0.6", "b 0.4", "a 1", "b 1", "a 0.7", "b 1", "stack", "stack, usual strengths",
        "merge: Weighted sum", "Core-space TIES", "ratios 0.3/0.7", "rank 2", "A:OUTALL+B:INALL", "merge × 0.5",
    ]  # fmt: skip
    assert world.state.job_count == 4 * 15
    assert labels[0].startswith("|merge: Weighted sum − stack| × ")  # the maps are drawn last
    assert len(done.images) == 2 + 60 == len(done.infotexts)
    assert done.index_of_first_image == 2
    first = world.made[:15]
    assert {text for text, *_ in first} == {"ink, a cat"}
    assert {seed for _, seed, *_ in world.made} == {1, 2}
    assert first[7][2] == [["a", "0.6"], ["b", "0.4"]]
    assert first[8][2] == [["a", "0.7"], ["b", "1"]]
    assert [items[1] for items in (first[9][2][0], first[14][2][0])] == ["1", "0.5"]
    assert first[9][2][0][0] == first[14][2][0][0]  # a strength is the WebUI's, not another merge
    assert not any("lora-merge-live" in text for text in done.infotexts)
    assert "Merge column: merge × 0.5" in done.infotexts[-1]
    assert len(world.saved) == 2
    assert not _files(desk)
    known = {**world.networks.available_networks, **world.networks.available_network_aliases}
    assert not any(name.startswith(merges.PREFIX) for name in known)


def test_every_picture_pastes_back_into_the_tab(world, desk):
    done = run.run_comparison(Processing(SETUP), desk, _asked(methods=["ties"]))
    text = done.infotexts[-1]
    state = desk.handle_dict({"op": "picture_text", "text": text})["state"]
    assert state["method"] == "ties"
    assert [(row["key"], row["ratio"]) for row in state["sources"]] == [
        ("0/a.safetensors", 0.6), ("0/sub/b.safetensors", 0.4),
    ]  # fmt: skip
    assert to_recipe(tab_state(state), desk.library.resolve).method == "ties"
    # the grid itself carries the merge it is about
    assert (
        desk.handle_dict({"op": "picture_text", "text": done.infotexts[0]})["state"]["method"]
        == "weighted_sum"
    )
    assert desk.handle_dict({"op": "picture_text", "text": "a cat\nSteps: 3"}) == {"ok": True, "state": None}


def test_block_weights_are_baked_into_the_stack(world, desk):
    setup = json.dumps(_state(("0/a.safetensors", 0.6, {"blocks": {"OUT03": 0.0}}), PAIR[1]))
    run.run_comparison(Processing(setup), desk, _asked(columns=[columns.STACK]))
    [(_, _, loaded, _, _)] = world.made
    assert loaded[0][0].startswith(merges.PREFIX)
    assert loaded[1] == ["b", "0.4"]


def test_knock_out_switches_one_block_off_at_a_time(desk):
    recipe = to_recipe(tab_state(_state(*PAIR)), desk.library.resolve)
    found = columns.plan_columns(recipe, columns.ColumnChoices((), knockout=True), injection_place(desk))
    labels = [column.label for column in found]
    assert labels[0] == "without BASE"
    assert len(labels) == len(set(labels)) > 3
    for column in found:
        block = column.label.removeprefix("without ")
        assert all(source.blocks == {block: 0.0} for source in column.recipe.sources)


def injection_place(desk):
    from lib_merge.webui.compare.run import place_of

    return place_of(desk)


def test_one_broken_cell_and_an_interrupt_keep_the_rest(world, desk):
    world.fail = lambda loaded: len(loaded) == 2
    done = run.run_comparison(Processing(SETUP), desk, _asked())
    assert len(done.images) == 1 + 4
    assert "failed: RuntimeError: out of memory" in done.comments
    world.fail, world.made, world.stop_after = None, [], 2
    done = run.run_comparison(Processing(SETUP), desk, _asked())
    assert len(done.images) == 1 + 2
    assert len(world.made) == 2
    assert not _files(desk)


@pytest.mark.parametrize(
    ("setup", "fields", "sentence"),
    [
        ("", {}, "set up a merge"),
        ("[]", {}, "set up a merge"),
        (json.dumps(_state()), {}, "pick a LoRA"),
        (json.dumps(_state(("0/gone.safetensors", 1, {}))), {}, "not in the LoRA folders"),
        (SETUP, {"merge": "no such thing"}, "no recipe called"),
        (SETUP, {"columns": []}, "at least one column"),
        (SETUP, {"methods": ["nonsense"]}, "no merge method"),
        (SETUP, {"ratios": "0.1/0.2/0.3"}, "3 for 2 sources"),
        (SETUP, {"ratios": "a/b"}, "not a number"),
        (SETUP, {"ranks": "many"}, "rank"),
        (SETUP, {"presets": "OUTALL"}, "A:NAME"),
        (SETUP, {"presets": "C:OUTALL"}, "no source C"),
        (SETUP, {"presets": "A:NOSUCHPRESET"}, "NOSUCHPRESET"),
        (SETUP, {"knob": "drop_rate"}, "drop_rate=0.1"),
        (SETUP, {"knob": "drop_rate=0.1"}, "no knob"),
        (SETUP, {"strengths": "strong"}, "not a number"),
        (SETUP, {"seeds": "x"}, "not a number"),
        (SETUP, {"seeds": "-1"}, "whole number"),
        (SETUP, {"sizes": "big"}, "512x768"),
        (SETUP, {"prompts": "a\n" * 300, "seeds": "1,2"}, "rows are too many"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_picture(world, desk, setup, fields, sentence):
    with pytest.raises(MergeError, match=re.escape(sentence)):
        run.run_comparison(Processing(setup), desk, _asked(**fields))
    assert not world.made
    assert not _files(desk)


def test_a_checkpoint_of_another_family_is_refused_before_the_first_picture(world, desk):
    world.model.is_sd1, world.model.is_sdxl = False, True
    with pytest.raises(RecipeError, match="for SD1 and the loaded checkpoint is SDXL"):
        run.run_comparison(Processing(SETUP), desk, _asked())
    assert not world.made


def test_a_recipe_in_the_prompt(world, desk):
    assert desk.handle_dict({"op": "recipe_save", "name": "our pair", "state": _state(*PAIR)})["ok"]
    p = Processing("", prompt="a cat <merge:our pair:0.8> <lora:a:0.5> <merge:our pair>", enable_hr=True)
    done = world.process(p)
    _, _, loaded, _, last = world.made[0]
    assert [items[1:] for items in loaded] == [["0.8"], ["0.5"], ["1"]]
    assert loaded[0][0] == loaded[2][0]
    assert "<merge:our pair:0.8>" in done.infotexts[0]
    assert "lora-merge-live" not in done.infotexts[0]
    assert json.loads(re.search(r'Merge recipe: (".*")', done.infotexts[0])[1])
    high = [params.items for params in last.hr_extra_network_data["lora"]]
    assert sorted(map(tuple, high)) == sorted({("a", "0.5"), (loaded[0][0], "0.8")} | {(loaded[2][0], "1")})
    assert "merge" not in last.hr_extra_network_data
    assert len(world.made) == 3
    assert len(_files(desk)) == 1  # kept for the next picture


def test_a_recipe_is_found_before_anybody_has_opened_the_tab(world, desk):
    desk.handle_dict({"op": "recipe_save", "name": "pair", "state": _state(*PAIR)})
    started = open_desk(desk.host)  # a WebUI that only its API uses
    started.archive.facts("header", 1).put({}, started.archive.facts("header", 1).load())
    assert [source.path.name for source in started.recipe_named("pair").sources] == [
        "a.safetensors",
        "b.safetensors",
    ]
    assert injection_place(open_desk(desk.host)).tag(desk.host.folder / "a.safetensors") == "a"


def test_an_unknown_recipe_makes_no_picture_and_says_why(world, desk):
    p = Processing("", prompt="a cat <merge:nothing:1>")
    with pytest.raises(LoraMergeRefusal) as caught:
        world.process(p)
    assert (caught.value.status_code, str(caught.value)) == (422, "there is no recipe called 'nothing'.")
    assert caught.value.detail == str(caught.value)
    assert not world.made
    p.prompt = "a cat"
    assert world.process(p).images  # a script that makes another picture of it is not refused again


def test_a_prompt_without_our_tags_is_left_alone(world, desk):
    p = Processing(SETUP)
    world.process(p)
    assert p.extra_generation_params == {}
    assert world.made[0][2] == []


def test_the_preview_is_stack_and_merge_of_one_seed(world, desk):
    setup = json.dumps({**_state(*PAIR), "preview": True})
    p = Processing(setup)
    done = world.process(p)
    assert len(done.images) == 2
    assert world.made[0][2] == [["a", "0.6"], ["b", "0.4"]]
    assert len(world.made[1][2]) == 1
    assert p.do_not_save_samples
    with pytest.raises(LoraMergeRefusal, match="pick a LoRA"):
        world.process(Processing(json.dumps({**_state(), "preview": True})))


def test_live_merges_are_made_once_trimmed_and_swept(world, tmp_path):
    path = write_lora(tmp_path / "a.safetensors")
    files = merges.LiveMerges(tmp_path / "live")
    recipe = Recipe((Source(path=path, name="a", ratio=0.5),))
    made = files.make(recipe)
    stamp = made.path.stat().st_mtime_ns
    assert files.make(recipe).name == made.name
    assert made.path.stat().st_mtime_ns == stamp
    write_lora(path, seed=4, rank=5)
    assert files.make(recipe).name != made.name
    files.show()
    assert set(world.networks.available_network_aliases) == set(files.names)
    assert not world.networks.available_networks  # the cards never see them
    many = [files.make(Recipe((Source(path=path, name="a", ratio=0.01 * n),))) for n in range(1, 12)]
    files.trim(keep=[many[0].name])
    assert len(files.names) == merges.KEPT + 1
    assert many[0].path.is_file()
    assert not made.path.exists()
    other = merges.LiveMerges(tmp_path / "live")  # another WebUI of the same folder
    assert many[0].path.is_file()
    files.clear()
    assert not (tmp_path / "live").exists()
    other.clear()


def test_what_a_crash_left_behind_is_swept(tmp_path):
    home = tmp_path / "live" / "123-abc"
    home.mkdir(parents=True)
    (home / ".alive.0.merging").touch()
    (home / f"{merges.PREFIX}0.safetensors").touch()
    merges.LiveMerges(tmp_path / "live")
    assert not list((tmp_path / "live").iterdir())


def test_a_live_merge_equals_the_saved_one(desk, tmp_path):
    from lib_merge.api import run_recipe
    from lib_merge.engine.threads import Job
    from tests.factories import dense_of

    recipe = to_recipe(tab_state(_state(*PAIR, method="ties")), desk.library.resolve)
    made = prompts.live_of(desk).make(recipe)
    run_recipe(recipe, tmp_path / "saved.safetensors", job=Job())
    one, two = dense_of(made.path), dense_of(tmp_path / "saved.safetensors")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_figures_are_distances_to_stack_and_sources():
    def cell(value, **more):
        return pictures.Cell(PIL.fromarray(np.full((9, 9, 3), value, np.uint8)), seconds=2.0, **more)

    names = [columns.Column("stack", "stack"), columns.Column("merge", "merge", (columns.Part(),))]
    grid = pictures.Grid(
        names, [], [[cell(10), cell(14)], [cell(0), cell(2)], [cell(0), cell(90, error="interrupted")]]
    )
    stack, merge = pictures.figures(grid)
    assert not stack["against"]
    [against] = merge["against"]
    assert (against["column"], against["difference"], against["spread"]) == ("stack", 3.0, 1.0)
    assert (merge["pictures"], merge["seconds"]) == (2, 2.0)
    assert "3.000 ± 1.000 grey levels from stack" in pictures.table(grid, [stack, merge])


def test_rows_are_every_combination():
    recipe = Recipe((Source(name="a"),))
    found = rows.plan_rows(rows.Lines("x\ny", "1,2", ("Euler",), "5, 7", "512x768"), recipe, "", 0)
    assert len(found) == 8
    assert found[0] == rows.Row("x · 1 · Euler · CFG 5 · 512×768", "x", 1, "Euler", 5.0, (512, 768))
    assert rows.plan_rows(rows.Lines(), recipe, "tab", 9)[0] == rows.Row("tab", "tab", 9)


def _estimate(desk, setup=SETUP, **more):
    return desk.handle_dict({"op": "compare_estimate", "asked": json.dumps(_asked(**more)), "setup": setup})


def test_the_estimate_says_how_much_and_what_is_wrong(desk):
    found = _estimate(desk, prompts="x\ny", methods=["ties"])
    assert found["said"].startswith("6 columns × 2 rows = 12 pictures, 2 merges made for them and not saved")
    assert not found["wrong"]
    assert _estimate(desk, columns=["Merge"])["said"].startswith(
        "1 column × 1 row = 1 picture, 1 merge made for them and not saved"
    )
    found = _estimate(desk, "")
    assert found["wrong"]
    assert "set up a merge" in found["said"]
    assert [panel.duration(n) for n in (0.2, 80, 600, 9000)] == ["1 s", "80 s", "10 minutes", "2.5 hours"]


def test_test_prompts_are_kept(desk, monkeypatch):
    def ask(**more):
        return desk.handle_dict({"op": "compare_prompts", **more})

    assert ask()["prompts"].count("\n") == 9
    assert ask(keep="one\ntwo")["said"] == "These are your test prompts from now on."
    assert ask()["prompts"] == "one\ntwo"
    assert "built-in" in ask(keep=" ")["said"]
    assert ask()["prompts"].count("\n") == 9
    monkeypatch.setattr(panel, "PROMPTS_FILE", "no folder/prompts.txt")
    assert "the folder no folder does not exist" in ask(keep="one")["error"]


def test_the_panel_is_told_what_there_is_to_choose(world, desk, monkeypatch):
    samplers = types.ModuleType("modules.sd_samplers")
    samplers.samplers = [types.SimpleNamespace(name="Euler"), types.SimpleNamespace(name="DDIM")]
    sys.modules["modules"].sd_samplers = samplers
    monkeypatch.setitem(sys.modules, "modules.sd_samplers", samplers)
    desk.handle_dict({"op": "recipe_save", "name": "pair", "state": json.loads(SETUP)})
    found = desk.handle_dict({"op": "compare_choices"})
    assert found["samplers"] == ["Euler", "DDIM"]
    assert set(found["ticked"]) < set(found["columns"])
    assert found["names"] == ["pair"]


@pytest.mark.parametrize(
    "given", ["", None, {}, "{}", '{"columns": ["Merge"], "seeds": "1"}', {"seeds": "1"}]
)
def test_the_script_takes_json_or_an_object(given):
    found = panel.asked(given)
    assert found.get("seeds") in (None, "1")
    assert set(found) <= set(panel.NAMES)


@pytest.mark.parametrize("given", ["Merge tab", "[1]", "{", '{"colums": []}', {"nonsense": 1}, 7, '"text"'])
def test_anything_else_is_refused_in_one_sentence(given):
    with pytest.raises(RecipeError, match="columns") as caught:
        panel.asked(given)
    assert str(caught.value).count("\n") == 0


def test_the_script_runs_what_its_panel_asked(world, desk, monkeypatch):
    world.scripts.Script = object
    monkeypatch.setattr(script, "desk_of", lambda extension: desk)
    comparison = script.make_script(Path("extension"))()
    assert comparison.title() == "LoRA merge comparison"
    comparison.run(Processing(SETUP), json.dumps({"columns": [columns.MERGE], "seeds": "1, 2"}))
    assert len(world.made) == 2
    comparison.run(Processing(SETUP))  # nothing was touched: the ticked columns
    assert len(world.made) == 2 + 5


def test_the_panel_costs_two_components(world):
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks(analytics_enabled=False) as page:
        [field] = script.panel("txt2img")
    assert field.do_not_save_to_config
    assert len(page.blocks) == 2 + 1  # and the page itself


# ---------------------------------------------------------------- axes


class AxisOption:
    def __init__(
        self, label, type, apply, format_value=None, confirm=None, cost=0.0, choices=None, prepare=None
    ):
        self.label, self.type, self.apply, self.confirm, self.cost, self.choices = (
            label,
            type,
            apply,
            confirm,
            cost,
            choices,
        )


@pytest.fixture
def options(world, desk):
    module = types.SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Seed", int, None)])
    script = type("Script", (), {"__module__": "xyz_grid.py"})
    world.scripts.scripts_data = [types.SimpleNamespace(script_class=script, module=module)]
    axes.add_axes(desk)
    axes.add_axes(desk)  # "Reload UI"
    return {option.label.removeprefix("[Merge] "): option for option in module.axis_options}


def test_axes_are_there_once_and_change_copies_only(world, desk, options):
    assert {
        "method",
        "ratio A",
        "balance A:B",
        "rank",
        "block preset A",
        "text encoder ratio A",
        "knob",
    } < set(options)
    assert options["ratio A"].type is float
    assert "ties" in options["method"].choices()
    p = Processing(SETUP, n_iter=1, batch_size=1)
    seen = []
    for share in (0.0, 0.25):
        cell = copy.copy(p)
        options["balance A:B"].apply(cell, share, [])
        options["method"].apply(cell, "core_ties", [])
        world.process(cell)
        seen.append(json.loads(cell.extra_generation_params["Merge recipe"]))
    assert [[source["ratio"] for source in one["sources"]] for one in seen] == [[0.0, 1.0], [0.25, 0.75]]
    assert {one["method"] for one in seen} == {"core_ties"}
    assert not hasattr(p, "lora_merge_changes")
    assert p.extra_generation_params == {}
    assert all(len(loaded) == 1 for _, _, loaded, _, _ in world.made)


def test_an_axis_means_the_row_that_the_tab_calls_so(world, options):
    rows = (("0/a.safetensors", 1, {"on": False}), *PAIR)
    setup = json.dumps(_state(*rows))
    with pytest.raises(LoraMergeRefusal, match="no source A: this merge has B, C"):
        options["ratio A"].confirm(Processing(setup), [0.9])
    p = Processing(setup, n_iter=1, batch_size=1)
    options["ratio B"].apply(p, 0.9, [])
    world.process(p)
    sources = json.loads(p.extra_generation_params["Merge recipe"])["sources"]
    assert [(one["name"], one["ratio"]) for one in sources] == [
        ("a.safetensors", 0.9),
        ("b.safetensors", 0.4),
    ]


def test_an_axis_changes_the_recipe_in_the_prompt(world, desk, options):
    desk.handle_dict({"op": "recipe_save", "name": "pair", "state": _state(*PAIR)})
    p = Processing("", n_iter=1, batch_size=1, prompt="a cat <merge:pair:0.5>")
    options["knob"].confirm(Processing(json.dumps(_state(*PAIR, method="dare"))), ["drop_rate=0.5"])
    options["ratio B"].confirm(p, [0.1, 0.9])
    options["ratio B"].apply(p, 0.9, [])
    world.process(p)
    assert json.loads(p.extra_generation_params["Merge recipe"])["sources"][1]["ratio"] == 0.9
    assert world.made[0][2][0][1] == "0.5"


@pytest.mark.parametrize(
    ("axis", "value", "sentence"),
    [("ratio D", 0.5, "no source D"), ("method", "nonsense", "no merge method"), ("rank", "x", "rank"), ("knob", "x=1", "no knob"), ("block preset A", "NOSUCH", "NOSUCH")],
)  # fmt: skip
def test_an_axis_says_what_is_wrong_before_the_first_picture(world, options, axis, value, sentence):
    with pytest.raises(LoraMergeRefusal, match=sentence):
        options[axis].confirm(Processing(SETUP), [value])
    with pytest.raises(LoraMergeRefusal, match="set up a merge"):
        options["ratio A"].confirm(Processing(""), [0.5])


# ---------------------------------------------------------------- verdicts, recipes


def test_a_verdict_goes_to_the_history_with_its_grid(world, desk):
    run.run_comparison(Processing(SETUP), desk, _asked(methods=["core_ties"]))
    found = desk.handle_dict({"op": "comparison"})["found"]
    index = next(n for n, column in enumerate(found["columns"]) if column["kind"] == "variant")
    given = {"preserved": {"a": "no", "b": "yes"}, "against": "worse", "artefacts": True}
    ask = {"op": "verdict", "comparison": found["id"], "column": index, "verdict": given, "notes": "too loud"}
    refused = desk.handle_dict({**ask, "verdict": {**given, "stray": "<img>"}})["error"]
    assert refused.startswith("there is no field verdict.stray")
    reply = desk.handle_dict(ask)
    assert reply["status"] == "revise"
    entry = desk.history.get(reply["entry"])
    assert (entry.status, entry.grid, entry.notes, entry.method) == (
        "revise",
        found["id"],
        "too loud",
        "core_ties",
    )
    assert entry.verdict == {
        "preserved": {"a": "no", "b": "yes"},
        "against": "worse",
        "decision": "",
        "artefacts": True,
    }
    listed = desk.handle_dict({"op": "history"})
    assert listed["can"] == {entry.id: []}  # it was never saved: nothing to verify, rename or use
    again = desk.handle_dict({**ask, "verdict": {"decision": "keep"}})
    assert (again["entry"], again["status"]) == (reply["entry"], "ok")
    assert len(desk.history.list()) == 1
    picture = desk.handle_dict({"op": "comparison_picture", "comparison": found["id"]})["picture"]
    assert picture.startswith("data:image/jpeg;base64,")
    assert desk.handle_dict({"op": "open", "entry": reply["entry"]})["state"]["method"] == "core_ties"
    stack = next(n for n, column in enumerate(found["columns"]) if column["kind"] == "none")
    assert "no merge" in desk.handle_dict({**ask, "column": stack})["error"]
    assert not desk.handle_dict({"op": "comparison", "comparison": "../../x"})["ok"]


def test_a_verdict_finds_the_merge_that_was_saved(world, desk, tmp_path):
    import time

    state = {**_state(*PAIR), "output": {"template": "both", "folder": ""}}
    job = desk.handle_dict({"op": "merge", "state": state})["job"]
    for _ in range(400):
        if desk.jobs.get(job).ended:
            break
        time.sleep(0.02)
    assert desk.jobs.get(job).state == "done", desk.jobs.get(job).error
    run.run_comparison(Processing(SETUP), desk, _asked(merge="both", columns=[columns.MERGE]))
    found = desk.handle_dict({"op": "comparison"})["found"]
    reply = desk.handle_dict(
        {"op": "verdict", "comparison": found["id"], "column": 0, "verdict": {"decision": "keep"}}
    )
    assert [entry.id for entry in desk.history.list()] == [reply["entry"]]
    picture = desk.handle_dict({"op": "comparison_picture", "comparison": found["id"]})["picture"]
    [_, _, _, keys, _] = world.made[0]
    text = f"Merge recipe: {json.dumps(keys['Merge recipe'])}"
    done = desk.handle_dict({"op": "preview_set", "text": text, "image": picture})
    assert done == {"ok": True, "name": "both"}
    assert (desk.host.folder / "both.preview.png").read_bytes().startswith(b"\x89PNG")
    other = recipe_edits.with_ratio(to_recipe(tab_state(_state(*PAIR)), desk.library.resolve), 0, 0.1)
    assert (
        "save it first"
        in desk.handle_dict({"op": "preview_set", "text": other.dumps(), "image": picture})["error"]
    )
    assert (
        "cannot be read" in desk.handle_dict({"op": "preview_set", "text": text, "image": "data:,x"})["error"]
    )


def test_saved_recipes(desk, tmp_path):
    ask = desk.handle_dict
    assert ask({"op": "recipe_save", "name": " two  words ", "state": _state(*PAIR)})["name"] == "two words"
    assert "already" in ask({"op": "recipe_save", "name": "two words", "state": _state(*PAIR)})["error"]
    for bad in ("", "a:b", "a<b", "../x", "con", ".hidden", "x" * 99):
        assert "error" in ask({"op": "recipe_save", "name": bad, "state": _state(*PAIR)})
    assert "pick a LoRA" in ask({"op": "recipe_save", "name": "empty", "state": _state()})["error"]
    assert ask({"op": "recipes"})["names"] == ["two words"]
    assert desk.recipe_named("TWO words").sources[0].path == desk.host.folder / "a.safetensors"
    assert ask({"op": "open", "recipe": "two words"})["state"]["sources"][1]["ratio"] == 0.4
    (desk.host.folder / "a.safetensors").unlink()
    desk.library.refresh(wait=True)
    with pytest.raises(RecipeError, match=r"a\.safetensors is needed"):
        desk.recipe_named("two words")
    file = desk.host.data_folder() / "recipes" / "two words.json"
    file.write_text("{")
    assert "broken" in ask({"op": "open", "recipe": "two words"})["error"]
    assert file.read_text() == "{"
    assert ask({"op": "recipe_remove", "name": "two words"})["names"] == []
    assert "no recipe" in ask({"op": "recipe_remove", "name": "two words"})["error"]


def test_tags_are_read_and_turned_into_the_loaders():
    text = "x <merge:a b:0.5:te=1> <merge:c> <lora:d:1> <merge:gone:1>"
    assert prompts.names_in([text, "<merge:c:2>"]) == ["a b", "c", "gone"]
    assert (
        prompts.as_lora_tags(text, {"a b": "L1", "c": "L2"}) == "x <lora:L1:0.5:te=1> <lora:L2:1> <lora:d:1> "
    )


def test_a_history_without_the_new_field_still_opens(tmp_path):
    entry = Archive(tmp_path).history.add(name="x")
    bare = json.dumps({"version": 1, "name": "x"})
    Database(tmp_path / NAME).write(lambda table: table.execute("UPDATE entries SET entry = ?", (bare,)))
    assert Archive(tmp_path).history.get(entry.id).grid == ""
