"""Live merges where a WebUI makes it hard: unknown LoRAs, other base models, strengths over the steps, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from lib_merge.errors import RecipeError
from lib_merge.files.hashes import file_hash
from lib_merge.recipe import loads
from tests.factories import write_lora
from tests.test_tab_server import PAIR, _state

pytest.importorskip("fastapi", reason="every WebUI has it")

from lib_merge.webui import checkpoint, host, lora_code
from lib_merge.webui.compare import script as compare_script
from lib_merge.webui.live import merges, prompts
from lib_merge.webui.live.afterwards import Afterwards
from lib_merge.webui.live.curves import Curve, read_curve, split_strengths
from lib_merge.webui.refusal import LoraMergeRefusal
from tests.test_compare import SETUP, Processing, desk, world  # noqa: F401


@pytest.fixture
def pair(world, desk):  # noqa: F811
    """A recipe called pair."""
    for name in ("pair", "same"):
        assert desk.handle_dict({"op": "recipe_save", "name": name, "state": _state(*PAIR)})["ok"]
    return world


# ---------------------------------------------------------------- names


def _loaded(world, **more):  # noqa: F811
    p = Processing("", n_iter=1, batch_size=1, **more)
    world.process(p)
    return [name for name, *_ in world.made[-1][2]], p


def test_a_merge_acts_beside_a_lora_that_nobody_knows(pair):
    names, p = _loaded(pair, prompt="a cat <lora:gone:1> <merge:pair:0.8> <lora:a:0.5> <lora:gone:0.2>")
    assert names[0].startswith(merges.PREFIX)
    assert names[1:] == ["a"]
    assert list(p.comments) == ["there is no LoRA called 'gone': it was left out of the picture."]
    assert p.all_prompts[0].count("<lora:gone") == 2  # the infotext has what the person wrote


def test_in_hires_fix_too(pair):
    names, p = _loaded(pair, prompt="a cat <merge:pair:0.8> <lora:gone:1>", enable_hr=True)
    high = [params.items[0] for params in p.hr_extra_network_data["lora"]]
    assert names == high
    assert high[0].startswith(merges.PREFIX)
    assert list(p.comments) == ["there is no LoRA called 'gone': it was left out of the picture."]


def test_a_lora_that_is_new_in_the_folder_is_not_unknown(pair, desk):  # noqa: F811
    _loaded(pair, prompt="a cat <merge:pair:1>")
    write_lora(desk.host.folder / "new.safetensors", seed=3)
    names, p = _loaded(pair, prompt="a cat <merge:pair:1> <lora:new:1>")
    assert names[1] == "new"
    assert not p.comments


def test_a_name_is_looked_up_as_the_webui_does(world, monkeypatch):  # noqa: F811
    world.list_available_networks()
    networks = world.networks
    networks.available_network_aliases["twice"] = object()
    assert lora_code.unknown_of(["twice", "a"], lambda: None) == []
    networks.forbidden_network_aliases = {"twice": 1}  # an alias of two files: only a file's own name counts
    assert lora_code.unknown_of(["twice", "a"], lambda: None) == ["twice"]
    assert lora_code.name_in(["te=1", "a", "0.5"]) == "a"
    extra = sys.modules["modules.extra_networks"]
    lora = object()
    extra.extra_network_registry, extra.extra_network_aliases = {"lora": lora}, {"lyco": lora, "x": 1}
    sys.modules["modules"].extra_networks = extra
    texts = ["a <lyco:gone:1> <hypernet:gone:1> <lora:a:te=1>"]
    assert lora_code.settle(texts, lambda: None) == ["gone"]
    assert texts == ["a  <hypernet:gone:1> <lora:a:te=1>"]


# ---------------------------------------------------------------- refusals


def test_where_exceptions_get_lost_the_sentence_stands_below_the_picture(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "modules_forge.main_thread", types.ModuleType("main_thread"))
    p = Processing("", prompt="a cat <merge:nothing:1>")
    assert not pair.process(p).images
    assert list(p.comments) == ["LoRA Merge made no picture: there is no recipe called 'nothing'."]
    p = Processing("", prompt="a cat <merge:nothing:1>", is_api=True)
    with pytest.raises(LoraMergeRefusal):
        pair.process(p)


def test_a_comparison_is_refused_in_the_same_way(world, desk, monkeypatch):  # noqa: F811
    with pytest.raises(LoraMergeRefusal, match="set up a merge") as caught:
        compare_script.answer(Processing("", is_api=True), desk, "")
    assert caught.value.status_code == 422
    monkeypatch.setitem(sys.modules, "modules_forge.main_thread", types.ModuleType("main_thread"))
    assert "made no picture: set up a merge" in compare_script.answer(Processing(""), desk, "").comments


def test_the_api_answers_422_with_the_sentence(pair):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()

    @app.post("/sdapi/v1/txt2img")
    def txt2img():
        return {"images": len(pair.process(Processing("", prompt="<merge:nothing:1>", is_api=True)).images)}

    answer = TestClient(app).post("/sdapi/v1/txt2img")
    assert (answer.status_code, answer.json()) == (422, {"detail": "there is no recipe called 'nothing'."})


# ---------------------------------------------------------------- the loaded model


def _model(name, **attributes):
    return type(name, (), {})() if not attributes else type(name, (), attributes)()


def _with_config(name, flag="is_sd1"):
    """reForge's model: one class for all, told by its configuration; flags say SD1 for what they do not know."""
    inner = types.SimpleNamespace(model_config=_model(name))
    objects = types.SimpleNamespace(unet=types.SimpleNamespace(model=inner))
    return _model("ForgeSD", forge_objects=objects, **{flag: True})


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (_model("StableDiffusion", is_sd1=True), "SD1"),
        (_model("StableDiffusionXL", is_sdxl=True, is_sd1=False), "SDXL"),
        (_model("Mugen", is_sdxl=True), "SDXL"),
        (_model("LatentDiffusion", is_sd2=True), "SD2"),
        (_model("Flux"), "Flux"),
        (_model("Flux2"), "Flux.2"),
        (_model("Chroma"), "Chroma"),
        (_model("ZImage"), "Z-Image"),
        (_model("QwenImage", is_wan=True), "Qwen-Image"),
        (_model("Wan", is_wan=True), "Wan"),
        (_model("Krea2", is_wan=True), "Krea2"),
        (_model("Anima", is_wan=True), "Anima"),
        (_model("Lumina2"), "Lumina2"),
        (_model("ErnieImage"), "ErnieImage"),
        (_with_config("SDXL", "is_sdxl"), "SDXL"),
        (_with_config("FluxSchnell"), "Flux"),
        (_with_config("WAN21_T2V"), "Wan"),
        (_with_config("SD15"), "SD1"),
        (_model("FakeInitialModel"), ""),
    ],
)
def test_every_hosts_model_says_its_family(world, model, family):  # noqa: F811
    sys.modules["modules.sd_models"].model_data.sd_model = model
    found = checkpoint.loaded_family()
    plain = re.sub(r"\W", "", found).lower()
    assert plain == re.sub(r"\W", "", family).lower() or (
        family == "ErnieImage" and plain.startswith("ernie")
    )
    if found and found != "SDXL":
        with pytest.raises(RecipeError, match=f"for SDXL and the loaded checkpoint is {re.escape(found)}:"):
            checkpoint.check_family("SDXL")
    for fine in (found, "", "other", "AnimateDiff"):
        checkpoint.check_family(fine)


def test_a_flux_lora_passes_for_chroma_but_not_the_other_way(world):  # noqa: F811
    models = sys.modules["modules.sd_models"]
    models.model_data.sd_model = _model("Chroma")
    checkpoint.check_family("Flux")
    models.model_data.sd_model = _model("Flux")
    with pytest.raises(RecipeError):
        checkpoint.check_family("Chroma")


def test_an_sdxl_merge_makes_no_picture_on_z_image(pair):
    sys.modules["modules.sd_models"].model_data.sd_model = _model("ZImage")
    with pytest.raises(LoraMergeRefusal, match="this merge is for SD1 and the loaded checkpoint is Z-Image"):
        _loaded(pair, prompt="a cat <merge:pair:1>")


# ---------------------------------------------------------------- infotext


def test_the_infotext_is_short_and_has_true_hashes(pair, desk):  # noqa: F811
    _, p = _loaded(pair, prompt="a cat <merge:pair:1>")
    text = p.extra_generation_params["Merge recipe"]
    assert len(text) < 300
    recipe = loads(text)
    paths = [desk.host.folder / "a.safetensors", desk.host.folder / "sub" / "b.safetensors"]
    assert [source.sha256 for source in recipe.sources] == [file_hash(path)[:16] for path in paths]
    assert [source.ratio for source in recipe.sources] == [0.6, 0.4]
    # found again under another name, and known as changed when it is another file
    paths[0].rename(paths[0].with_name("renamed.safetensors"))
    desk.library.refresh(wait=True)
    assert desk.with_paths(recipe).sources[0].path.name == "renamed.safetensors"
    write_lora(paths[0].with_name("renamed.safetensors"), seed=9)
    desk.library.refresh(wait=True)
    with pytest.raises(RecipeError, match="is needed"):
        desk.with_paths(recipe)


def test_what_an_older_version_wrote_still_pastes(desk):  # noqa: F811
    old = (
        '{"conv_rank":null,"family":null,"format":"lora-merge-recipe","knobs":{"normalize":true,'
        '"trim_fraction":0.8},"method":"ties","precision":"fp16","prune":0.0,"rank":"sum","seed":0,"sources":['
        '{"name":"a.safetensors","ratio":0.6,"sha256":"","size":0},{"name":"b.safetensors","ratio":0.4,'
        '"sha256":"","size":0}],"version":1}'
    )
    text = f"a cat\nSteps: 2, Merge recipe: {json.dumps(old)}"
    state = desk.handle_dict({"op": "picture_text", "text": text})["state"]
    assert [row["key"] for row in state["sources"]] == ["0/a.safetensors", "0/sub/b.safetensors"]
    assert state["method"] == "ties"


def test_a_source_that_was_never_merged_has_its_hash_too(world, desk):  # noqa: F811
    recipe = prompts.tab_recipe(desk, SETUP)
    live = prompts.live_of(desk)
    assert all(source.sha256 for source in live.stamped(recipe).sources)
    nested = type(recipe)((type(recipe.sources[0])(recipe=recipe, ratio=0.5),))
    [group] = live.stamped(nested).sources
    assert group.recipe.sources[0].sha256 == file_hash(desk.host.folder / "a.safetensors")


# ---------------------------------------------------------------- the end of the process

_MERGES = """
import sys, pathlib, time
from lib_merge.recipe import Recipe, Source
from lib_merge.webui.live.merges import LiveMerges
path = pathlib.Path(sys.argv[1])
made = LiveMerges(path.parent / "live").make(Recipe((Source(path=path, name="a"),)))
print(made.path, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_nothing_stays_when_the_webui_is_terminated(tmp_path, how):
    write_lora(tmp_path / "a.safetensors")
    with subprocess.Popen(
        [sys.executable, "-c", _MERGES, str(tmp_path / "a.safetensors")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(merges.__file__).parents[3],
    ) as process:
        made = Path(process.stdout.readline().strip())
        assert made.is_file()
        os.kill(process.pid, getattr(signal, how))
        process.wait(20)
    for _ in range(100):
        if not (tmp_path / "live").exists():
            break
        time.sleep(0.1)
    assert not (tmp_path / "live").exists()


def test_a_folder_that_is_named_from_here_goes_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("live") / "1-a"
    folder.mkdir(parents=True)
    (folder / "x.safetensors").touch()
    after = Afterwards(folder)
    assert folder.is_dir()  # as long as this process lives
    after.now()
    assert not Path("live").exists()


# ---------------------------------------------------------------- another WebUI


@pytest.fixture
def sd_next(monkeypatch, tmp_path):
    """SD.Next's modules, as far as they differ: its LoRA code, and paths that moved."""
    for name in ("networks", "network"):
        monkeypatch.setitem(sys.modules, name, None)
    loader = types.ModuleType("modules.lora.lora_load")
    loader.available_networks = {"ink": types.SimpleNamespace(filename="ink.safetensors", alias="ink")}
    loader.available_network_aliases = dict(loader.available_networks)
    loader.lora_cache = {"ink": object()}
    loader.listed = 0

    def list_available_networks():
        loader.listed += 1

    loader.list_available_networks = list_available_networks
    paths = types.ModuleType("modules.paths")
    paths.data_path, paths.models_path = str(tmp_path), str(tmp_path / "models")
    paths.extensions_dir = str(tmp_path / "extensions")
    modules = types.ModuleType("modules")
    modules.paths = paths
    package = types.ModuleType("modules.lora")
    for module in (modules, package, loader, paths, types.ModuleType("modules.paths_internal")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return loader


def test_sd_next_merges_and_lists(sd_next, tmp_path):
    webui = host.WebuiHost(tmp_path)
    webui.refresh_loras([])
    assert sd_next.listed == 1
    assert not sd_next.lora_cache  # a LoRA that was written anew is read anew
    assert webui.claims_name("ink") == Path("ink.safetensors")
    assert webui.data_folder() == tmp_path / "lora-merge"
    assert webui.extension_folders()[0] == tmp_path / "extensions"


def test_sd_next_says_that_live_merges_do_not_work_there(sd_next, desk):  # noqa: F811
    p = Processing("", prompt="a cat <merge:pair:1>", all_prompts=["a cat <merge:pair:1>"])
    prompts.prepare(p, desk, "")
    with pytest.raises(LoraMergeRefusal, match="do not work in this WebUI"):
        p.init([], [], [])
    with pytest.raises(RecipeError, match="merge and save"):
        lora_code.check_live()


# ---------------------------------------------------------------- strengths over the steps


def _over(text, count):
    curve = read_curve(text)
    return [round(curve.at(step, count), 6) for step in range(count)]


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("0.8@0-0.5", [0.8, 0.8, 0.8, 0, 0, 0]),
        ("0.8@0.5-1", [0, 0, 0, 0.8, 0.8, 0.8]),
        ("0.8@0-0.3, 0.4@0.7-1", [0.8, 0.8, 0, 0, 0.4, 0.4]),
        ("-0.5@0-1", [-0.5] * 6),
        ("0@0,1@1", [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("0@1;1@0", [1, 0.8, 0.6, 0.4, 0.2, 0]),
        ("0.2@0.4,1@0.8", [0.2, 0.2, 0.2, 0.6, 1, 1]),
        ("1@0,1@3,0@3", [1, 1, 1, 0, 0, 0]),  # steps: three are done
        ("1@0-2", [1, 1, 0, 0, 0, 0]),
        ("1@0,0.5@2,0@4", [1, 0.75, 0.5, 0.25, 0, 0]),
    ],
)
def test_a_strength_over_the_steps(text, strengths):
    assert _over(text, 6) == strengths


def test_points_are_lora_controls(monkeypatch):
    """np.interp over shares of the pass, as LoRA Control and SD.Next have it, from first to last step."""
    for text in ("0.2@0,0.8@0.5,0@1", "1@0.3,0@0.9", "0@0,1@0.25,1@0.75,0@1"):
        weights, places = zip(*(map(float, piece.split("@")) for piece in text.split(",")))
        expected = [np.interp(step / 19, places, weights) for step in range(20)]
        assert np.allclose([read_curve(text).at(step, 20) for step in range(20)], expected)


def test_one_step_is_the_first():
    assert read_curve("0.8@0-0.5").at(0, 1) == 0.8
    assert read_curve("0@0,1@1").at(0, 1) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.8@", "no strength over the steps"),
        ("@0.5", "no strength over the steps"),
        ("x@0-1", "no strength over the steps"),
        ("0.8@-1", "no strength over the steps"),
        ("0.5,1@1", "no strength over the steps"),
        ("1e9@0-1", "no strength over the steps"),
        ("99999@0-1", "takes a number from"),
        ("0.8@0.5", "has one point and no line: write 0.8 for all steps, or 0.8@0.5-1 from there on"),
        ("0.8@5", "or 0.8@0-5 until there"),
        ("1@0,1@0-0.5", "mixes parts of the steps with points"),
        ("1@0-0.6,1@0.5-1", "empty or overlap"),
        ("1@0.5-0.5", "empty or overlap"),
    ],
)
def test_what_is_no_strength_is_said(text, sentence):
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        read_curve(text)


def test_the_text_encoder_has_the_first_steps_strength_or_its_own():
    assert split_strengths("") == (":1", None)
    assert split_strengths(":0.8:dyn=3") == (":0.8:dyn=3", None)
    assert split_strengths(":0.8@0-0.5")[0] == ":te=0.8:unet=0"
    assert split_strengths(":0.8@0.5-1")[0] == ":te=0:unet=0"
    assert split_strengths(":0.3:0.8@0.5-1:4")[0] == ":te=0.3:unet=0:dyn=4"
    text, curve = split_strengths(":te=1:unet=0.8@0-0.5:lbw=ALL")
    assert (text, curve) == (":te=1:unet=0:lbw=ALL", Curve(windows=((0.0, 0.5, 0.8),)))
    with pytest.raises(RecipeError, match="reads the prompt once"):
        split_strengths(":te=0@0,1@1:unet=1")
    with pytest.raises(RecipeError, match="in every pass anew"):
        split_strengths(":0.8@0-1:hr=1@0,0@1")


class Denoiser:
    """The WebUI's, as its callback shows it; `calls` of them in a pass."""

    def __init__(self, p, calls):
        self.p, self.step, self.total_steps = p, 0, calls


def _sampled(p, count, seen, order=1):
    denoiser = Denoiser(p, count * order)
    found = []
    for call in range(count * order):
        denoiser.step = call
        prompts.at_step(types.SimpleNamespace(denoiser=denoiser, total_sampling_steps=count, x="x"))
        found.append(seen())
    return found


def _prepared(world, text, **more):  # noqa: F811
    """A generation just before its first step."""
    p = Processing("", n_iter=1, batch_size=1, prompt=text, **more)
    p.sd_model = world.model
    world.process(p)
    return p


@pytest.fixture
def a1111(pair):
    pair.model.network_layer_mapping = {}
    network = sys.modules["network"]
    network.Network = type("Network", (), {"te_multiplier": 1.0, "unet_multiplier": 1.0})
    pair.networks.loaded_networks = []
    return pair


def test_a1111s_multipliers_are_set_at_every_step(a1111):
    p = _prepared(a1111, "a cat <merge:pair:0.8@0-0.5> <lora:a:1>", enable_hr=True)
    name, *items = a1111.made[0][2][0]
    assert items == ["te=0.8", "unet=0"]
    ours = types.SimpleNamespace(name=name, te_multiplier=0.8, unet_multiplier=0.0)
    other = types.SimpleNamespace(name="a", te_multiplier=1.0, unet_multiplier=1.0)
    a1111.networks.loaded_networks = [ours, other]
    assert _sampled(p, 4, lambda: ours.unet_multiplier) == [0.8, 0.8, 0.0, 0.0]
    assert _sampled(p, 3, lambda: ours.unet_multiplier, order=2) == [0.8, 0.8, 0.0, 0.0, 0.0, 0.0]
    p.is_hr_pass = True
    assert _sampled(p, 4, lambda: ours.unet_multiplier) == [0.8, 0.8, 0.0, 0.0]
    assert (ours.te_multiplier, other.unet_multiplier) == (0.8, 1.0)


def test_an_extension_that_sets_all_strengths_itself_is_not_fought(a1111):
    sys.modules["network"].Network.unet_multiplier = property(lambda self: 1.0)
    with pytest.raises(LoraMergeRefusal, match="another extension"):
        _prepared(a1111, "a cat <merge:pair:0.8@0-0.5>")
    _prepared(a1111, "a cat <merge:pair:0.8>")


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        ("<merge:pair:0.8@0-0.5> <merge:pair:1>", {}, "in the picture twice"),
        ("<merge:pair:0.8@0-0.5> <merge:same:1>", {}, "in the picture twice"),
        ("<merge:pair:0.8@5>", {}, "one point"),
        ("<merge:pair:0.8@0-0.5>", {"sampler_name": "DPM adaptive"}, "no fixed number of steps"),
    ],
)
def test_a_curve_that_cannot_be_kept_makes_no_picture(a1111, text, more, sentence):
    with pytest.raises(LoraMergeRefusal, match=sentence):
        _prepared(a1111, text, **more)
    assert not a1111.made


class Patcher:
    """A model of Forge with its patches."""

    def __init__(self, patches=()):
        self.patches = tuple(patches)

    def clone(self):
        return Patcher(self.patches)


@pytest.fixture
def forge(pair, monkeypatch):
    """Forge's loaders: what they put into the model is in `pair.baked`, most recent last."""
    pair.baked = []
    objects = types.SimpleNamespace(unet=Patcher(["another LoRA"]), clip="clip")
    pair.model.forge_objects = objects
    pair.model.current_lora_hash = "[]"

    def load_lora_for_models(unet, clip, tensors, strength, te, filename="", online_mode=False):
        assert clip == "clip"
        return Patcher([*unet.patches, (tensors["of"], strength, online_mode)]), clip

    pair.networks.load_lora_for_models = load_lora_for_models
    pair.networks.load_lora_state_dict = lambda filename: {"of": Path(filename).stem}
    backend = types.ModuleType("backend.sampling.sampling_function")
    backend.sampling_prepare = lambda unet, x: pair.baked.append(unet.patches)
    arguments = types.ModuleType("backend.args")
    arguments.dynamic_args = {}
    for module in (types.ModuleType("backend"), types.ModuleType("backend.sampling"), backend, arguments):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return pair


def test_forges_model_is_patched_anew_only_where_the_strength_changes(forge):
    p = _prepared(forge, "a cat <merge:pair:0.8@0-0.5>")
    name, *items = forge.made[0][2][0]
    assert items == ["te=0.8", "unet=0"]
    first = forge.model.forge_objects.unet
    found = _sampled(p, 4, lambda: forge.model.forge_objects.unet.patches)
    with_it = ("another LoRA", (name, 0.8, False))
    assert found == [with_it, with_it, ("another LoRA",), ("another LoRA",)]
    assert forge.baked == [with_it, ("another LoRA",)]
    assert first.patches == ("another LoRA",)  # the WebUI keeps it for the next picture
    # the next pass begins with what the WebUI puts there
    forge.model.forge_objects.unet = Patcher(["Hires"])
    prompts.prepare(p, forge.desk, "")
    prompts.before_batch(p, forge.desk, 0, ["a cat <merge:pair:0.8@0-0.5>"])
    assert _sampled(p, 2, lambda: forge.model.forge_objects.unet.patches)[1] == ("Hires",)
    processed = types.SimpleNamespace(comments="")
    prompts.after(p, processed)
    assert re.match(
        r"LoRA Merge: the strength over the steps patched the model 2 times anew", processed.comments
    )


def test_a_ramp_is_one_patch_a_step_and_online_where_the_webui_is(forge):
    p = _prepared(forge, "a cat <merge:pair:te=1:unet=0@0,1@1>")
    live = prompts.live_of(forge.desk)
    [name] = live.names
    path = live._shown[name].path
    forge.model.current_lora_hash = str([["x", 1, 1, False], [str(path), 0.0, 1.0, True]])
    _sampled(p, 5, lambda: None)
    assert [patches[1:] for patches in forge.baked] == [((name, s, True),) for s in (0.25, 0.5, 0.75, 1.0)]


def test_a_step_that_fails_stops_the_picture(forge):
    p = _prepared(forge, "a cat <merge:pair:0.8@0-0.5>")

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    forge.networks.load_lora_for_models = broken
    _sampled(p, 1, lambda: None)
    assert forge.state.interrupted
    assert "so the picture was stopped: out of memory" in list(p.comments)[-1]


def test_nunchaku_is_refused(forge):
    sys.modules["backend.args"].dynamic_args = {"nunchaku": True}
    with pytest.raises(LoraMergeRefusal, match="cannot change over the steps with this checkpoint"):
        _prepared(forge, "a cat <merge:pair:0.8@0-0.5>")


def test_the_folder_for_unsaved_pictures_is_made(world, tmp_path):  # noqa: F811
    shared = sys.modules["modules.shared"]
    shared.opts.temp_dir = str(tmp_path / "tmp" / "deep")
    world.process(Processing(json.dumps({**_state(*PAIR), "preview": True})))
    assert (tmp_path / "tmp" / "deep").is_dir()
    shared.opts.temp_dir = ""
    host.make_picture_folder()
