"""Numbers that are none, or that no field takes, at every number that a stranger's text can hold: recipes, requests of
the tab and of REST, presets, notes beside a LoRA, entries of the history. Each is understood or refused in one sentence.
"""

from __future__ import annotations

import copy
import json
import math
import typing

import pytest

from lib_merge.blocks.presets import Preset
from lib_merge.blocks.store import PresetStore
from lib_merge.errors import MergeError, RecipeError
from lib_merge.kept.archive import Archive
from lib_merge.kept.history import differences
from lib_merge.library.library import read_facts
from lib_merge.methods import METHODS
from lib_merge.recipe import MOST_WHOLE, Recipe, Source, loads
from lib_merge.ui.describe import example
from lib_merge.ui.desk import OPERATIONS
from lib_merge.ui.operations import open_desk
from lib_merge.ui.protocol import Sort, fields_of, form_of
from tests.campaigns.documents import ENTRY, PRESETS, SIDE_CAR, spots
from tests.factories import write_lora
from tests.test_tab_server import Host

# none of these is a number that any field takes
NO_NUMBERS = {
    "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "10^400": 10**400, "-10^400": -(10**400),
    "true": True, "false": False, "a list": [1], "an object": {"a": 1}, "text": "0.5", "long text": "9" * 30_000,
}  # fmt: skip
# these some fields take
ODD = {"-0": -0.0, "1e308": 1e308, "2^63": 2**63, "2^64": 2**64, "half": 0.5, "null": None, "below": -1}
# as texts: json.loads reads the first as an infinity, and refuses the second
SPELT = {"1e309": "1e309", "5,000 digits": "7" * 5000}
RECIPE = {
    "format": "lora-merge-recipe", "version": 1, "method": "ties", "rank": "8", "conv_rank": 2, "prune": 0.1, "prune_below": 0.01,
    "precision": "fp16", "seed": 3, "family": "SD1", "knobs": {"trim_fraction": 0.2},
    "sources": [
        {"name": "a.safetensors", "ratio": 0.6, "size": 12, "te_ratio": [0.2, 0.9], "blocks": {"IN04": 0.5}, "elements": [["OUT03", "ff", 0.25]]},
        {"ratio": 0.5, "te_ratio": 0.3, "recipe": {
            "method": "weighted_sum", "seed": 4, "conv_rank": 3, "prune": 0.2, "sources": [{"name": "b.safetensors", "ratio": 0.4, "size": 3}],
        }},
    ],
}  # fmt: skip


def numbers(document):
    """Return the place of every number of a document."""
    found = []
    for place in spots(document):
        value = document
        for step in place:
            value = value[step]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(place)
    return found


def put(document, place, value):
    """Return a document with another value at a place."""
    changed = copy.deepcopy(document)
    holder = changed
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = value
    return changed


def one_sentence(error):
    said = str(error)
    assert said.isprintable()
    assert 10 < len(said) < 700, said
    wrong = ("Error", "object has no", "NoType", "could not convert", "unhashable", "not supported between")
    assert not any(word in said for word in wrong), said
    return said


# -------------------------------------------------------------------------------------------- recipes


def _read(text):
    recipe = loads(text, "x.json")
    recipe.check()
    return recipe


def test_the_recipe_has_every_field_that_takes_a_number():
    assert _read(json.dumps(RECIPE)).sources[1].recipe.seed == 4
    named = {step for place in numbers(RECIPE) for step in place if isinstance(step, str)}
    assert {"ratio", "te_ratio", "blocks", "elements", "size", "seed", "conv_rank", "prune", "prune_below", "version"} <= named  # fmt: skip
    usual = Recipe((Source(name="a", ratio=0.5, blocks={"IN04": 1.0}),), "ties", prune_below=0.1).to_json()
    missing = {place[-1] for place in numbers(usual)} - {place[-1] for place in numbers(RECIPE)}
    assert missing <= set(METHODS["ties"].settings({}, 1))


@pytest.mark.parametrize("place", numbers(RECIPE), ids=lambda place: ".".join(map(str, place)))
def test_what_is_no_number_is_refused_at_every_number_of_a_recipe(place):
    for what, value in NO_NUMBERS.items():
        if (what == "a list" and place[-1] == "te_ratio") or (what == "text" and "knobs" in place):
            continue  # one for each encoder; the command line gives settings as texts
        with pytest.raises(RecipeError) as refused:
            _read(json.dumps(put(RECIPE, place, value)))
        one_sentence(refused.value)
    for text in SPELT.values():
        marked = json.dumps(put(RECIPE, place, "here"))
        with pytest.raises(RecipeError) as refused:
            _read(marked.replace('"here"', text))
        one_sentence(refused.value)
    for value in ODD.values():
        try:
            recipe = _read(json.dumps(put(RECIPE, place, value)))
        except RecipeError as error:
            one_sentence(error)
        else:
            assert loads(recipe.dumps()).dumps() == recipe.dumps()
            assert all(math.isfinite(_at(recipe.to_json(), one)) for one in numbers(recipe.to_json()))


def _at(document, place):
    for step in place:
        document = document[step]
    return document


@pytest.mark.parametrize("seed", [True, 1.5, 2**53, -(2**53), 10**400, "3"])
def test_a_seed_that_no_browser_keeps_is_refused(seed):
    with pytest.raises(RecipeError, match=f"it takes a whole number up to {MOST_WHOLE}"):
        Recipe((Source(name="a"),), seed=seed).check()
    Recipe((Source(name="a"),), seed=MOST_WHOLE).check()


def test_two_recipes_of_whatever_is_in_them_can_be_told_apart():
    values = [*NO_NUMBERS.values(), *ODD.values(), {"IN04": {"a": []}}, {"IN04": [1]}, [[1], {}], "x", 5, {}]
    for place in spots(RECIPE):
        for value in values if place else ():
            other = put(RECIPE, place, value)
            for lines in (differences(RECIPE, other), differences(other, RECIPE)):
                assert all(isinstance(line, str) for line in lines)
                assert lines


# -------------------------------------------------------------------------------------------- requests


def _fields(form, depth=0):
    """Yield the place of every number in a form, an index or a name for what is of any length."""
    if form.sort in (Sort.NUMBER, Sort.WHOLE):
        yield ()
    elif form.sort is Sort.OBJECT and depth < 6:
        for name, field in fields_of(form.kind).items():
            yield from ((name, *rest) for rest in _fields(field.form, depth + 1))
    elif form.sort in (Sort.LIST, Sort.MAP):
        step = 0 if form.sort is Sort.LIST else "IN04"
        yield from ((step, *rest) for rest in _fields(form.items[0], depth + 1))
    elif form.sort is Sort.UNION:
        for item in form.items:
            yield from _fields(item, depth)


def _put_new(document, place, value):
    """Put a value where there may be nothing yet."""
    if not place:
        return value
    step, *rest = place
    if step == 0:
        return [_put_new(document[0] if isinstance(document, list) and document else None, rest, value)]
    held = document if isinstance(document, dict) else {}
    return {**held, step: _put_new(held.get(step), rest, value)}


ASKED = {
    f"{name} {'.'.join(map(str, place))}": (name, place)
    for name, operation in OPERATIONS.items()
    for place in _fields(form_of(operation.request))
}


def test_requests_have_numbers_to_be_tried():
    assert len(ASKED) > 60
    assert {name for name, _ in ASKED.values()} >= {"merge", "plan", "analyze", "preset_save", "job"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("desk"))
    for seed, name in enumerate("ab"):
        write_lora(host.folder / f"{name}.safetensors", seed=seed)
    return open_desk(host)


@pytest.mark.parametrize("strict", [False, True], ids=["tab", "REST"])
def test_what_is_no_number_is_refused_at_every_number_of_a_request(desk, strict, caplog):
    for name, place in ASKED.values():
        usual = {"op": name, **(example(OPERATIONS[name].request) or {})}
        for what, value in NO_NUMBERS.items():
            reply = desk.handle_dict(_put_new(usual, place, value), strict=strict)
            if reply["ok"] or "job" in reply:  # a union that takes this sort, too
                assert what in ("text", "long text", "a list", "an object", "true", "false"), (
                    name,
                    place,
                    what,
                )
                continue
            one_sentence(reply["error"])
    assert not caplog.records


def test_what_json_spells_is_refused_at_every_number_of_a_request(desk, caplog):
    for name, place in ASKED.values():
        usual = {"op": name, **(example(OPERATIONS[name].request) or {})}
        text = json.dumps({**_put_new(usual, place, "\ue000"), "token": desk.token}, ensure_ascii=False)
        for spelt in (*SPELT.values(), "NaN", "-Infinity", "-1e999"):
            reply = json.loads(desk.handle(text.replace('"\ue000"', spelt)))
            assert not reply["ok"], (name, place, spelt)
            one_sentence(reply["error"])
    assert not caplog.records


# -------------------------------------------------------------------------------------------- what is kept


def _everywhere(document):
    for place in numbers(document):
        for value in (*NO_NUMBERS.values(), *ODD.values()):
            yield json.dumps(put(document, place, value))
        for spelt in SPELT.values():
            yield json.dumps(put(document, place, "here")).replace('"here"', spelt)


def test_presets_with_odd_numbers_are_read_without_them(tmp_path):
    # one weight by name, one of a list, one of a rule, and the version: the rest are as these
    few = copy.deepcopy(PRESETS)
    few["presets"][0]["families"] = {
        "SD1": {"weights": {"IN04": 0.5}},
        "SDXL": {"weights": ["R", 1, *["U"] * 10]},
    }
    for number, text in enumerate(_everywhere(few)):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        store = PresetStore(path)
        known = store.list()
        for preset in known:
            weights = preset.weights.values() if isinstance(preset.weights, dict) else preset.weights
            assert all(isinstance(one, str) or math.isfinite(one) for one in weights)
        try:
            store.save(Preset("mine", "SD1", {"IN04": 0.25}))
        except MergeError as error:  # of a newer version, perhaps: it stays as it is
            one_sentence(error)
            assert path.read_text() == text
            continue
        assert PresetStore(path).get("mine", "SD1").weights == {"IN04": 0.25}
        aside = [one for one in tmp_path.glob(f"{number}.*") if one != path and one.suffix == ".json"]
        assert len(known) == 3 or any(one.read_text() == text for one in aside)


def test_an_element_rule_with_half_a_character_is_kept(tmp_path):
    rules = "OUT03:\ud800f:0.5"
    desk = open_desk(Host(tmp_path))
    asked = {"op": "preset_save", "name": "p", "family": "SD1", "weights": {"IN04": 0.5}, "elements": rules}
    reply = desk.handle_dict(asked)
    assert reply["ok"], reply
    [preset] = [one for one in PresetStore(desk.presets.path).list("SD1") if one.name == "p"]
    assert preset.elements[0].elements == "\ud800f"


def test_notes_with_odd_numbers_are_read_beside_their_lora(tmp_path):
    path = write_lora(tmp_path / "a.safetensors")
    for text in _everywhere(SIDE_CAR):
        path.with_suffix(".json").write_text(text)
        facts = read_facts(path)
        assert not facts["problem"]
        json.dumps(facts, allow_nan=False)


def test_entries_with_odd_numbers_are_listed(tmp_path):
    entries = tmp_path / "history" / "entries"
    entries.mkdir(parents=True)
    texts = list(_everywhere({**ENTRY, "recipe": RECIPE}))
    for number, text in enumerate(texts):
        (entries / f"{number:06}-0123abcd.json").write_text(text)
    archive = Archive(tmp_path)
    listed = archive.history.list()
    assert len(listed) == len(texts)
    assert 0 < sum(entry.status == "broken" for entry in listed) < len(texts)
    for entry in listed:
        json.dumps(entry.to_json())
        assert differences(RECIPE, entry.recipe)


def test_every_setting_of_every_method_refuses_what_is_no_number():
    for method in METHODS.values():
        for knob in method.knobs:
            if not isinstance(knob.default, (int, float)) or isinstance(knob.default, bool):
                continue
            for what, value in NO_NUMBERS.items():
                if what == "text":
                    continue
                with pytest.raises(RecipeError) as refused:
                    knob.check(value, method.name)
                one_sentence(refused.value)


def test_the_places_are_those_of_the_types():
    assert typing.get_type_hints(Recipe)["seed"] is int
    assert ("sources", 0, "blocks", "IN04") in numbers(RECIPE)
