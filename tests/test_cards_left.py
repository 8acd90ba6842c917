"""A card beside a LoRA describes that LoRA: where no card is written an earlier one goes aside, and what a kill in the
middle of a merge left set aside is taken up by the next merge of that name.
"""

from __future__ import annotations

import errno
import json
import os

import pytest

from lib_merge import Job, merge, metadata
from lib_merge.errors import OutputError
from lib_merge.files import store
from lib_merge.files.reader import open_tensors
from lib_merge.recipe import loads

WORDS = {"activation text": "by a person", "vae": "theirs"}


def _merge(few, out, ratio, **job):
    return merge(few, ratios=[1.0, ratio], save_to=out, job=Job(overwrite=True, **job))


def _with_words(few, out):
    """Merge, and have a person write into the card; return its bytes."""
    _merge(few, out, 0.5)
    card = out.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **WORDS}))
    return card.read_bytes()


def _names(out):
    return {path.name for path in out.parent.iterdir() if not path.name.startswith(".")}


def _described(out):
    with open_tensors(out) as file:
        return metadata.describe_recipe(loads(metadata.recipe_of(file.metadata)))


def test_without_a_card_of_its_own_a_merge_has_not_that_of_an_earlier_one(few, out):
    before = _with_words(few, out)
    report = _merge(few, out, 0.7, side_car=False)
    assert _names(out) == {"m.safetensors", "m.json.bak"}
    assert (out.parent / "m.json.bak").read_bytes() == before
    assert "m.json described an earlier merge; it is kept as m.json.bak" in report.warnings


def test_without_a_card_of_its_own_the_same_merge_keeps_its_card(few, out):
    before = _with_words(few, out)
    _merge(few, out, 0.5, side_car=False)
    assert _names(out) == {"m.safetensors", "m.json"}
    assert out.with_suffix(".json").read_bytes() == before


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_merge_that_gets_no_name_leaves_the_card_where_it_was(few, out, error, monkeypatch):
    before, lora = _with_words(few, out), out.read_bytes()
    real = os.replace

    def replace(source, target):
        if str(target).endswith(".safetensors"):
            raise OSError(error, "no")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError):
        _merge(few, out, 0.7, side_car=False)
    assert _names(out) == {"m.safetensors", "m.json"}
    assert (out.with_suffix(".json").read_bytes(), out.read_bytes()) == (before, lora)


@pytest.mark.parametrize("published", [False, True], ids=["before the LoRA", "after the LoRA"])
@pytest.mark.parametrize("theirs", [0, 2])
def test_a_card_that_a_kill_left_aside_is_taken_up(few, out, published, theirs):
    before = _with_words(few, out)
    card = out.with_suffix(".json")
    kept = [out.parent / name for name in ("m.json.bak", "m.json.2.bak", "m.json.3.bak")]
    for path in kept[:theirs]:
        path.write_text('{"by": "another program"}')
    card.rename(kept[theirs])
    if published:
        _merge(few, out, 0.7, side_car=False)
    assert kept[theirs].read_bytes() == before
    _merge(few, out, 0.9)
    assert _names(out) == {"m.safetensors", "m.json", *(path.name for path in kept[:theirs])}
    said = json.loads(card.read_text())
    assert {name: said[name] for name in WORDS} == WORDS
    assert said["description"] == _described(out)
    assert "b@0.9" in said["description"]


@pytest.mark.parametrize("theirs", ['{"notes": "a copy by hand"}', "no JSON", "[]"])
def test_a_file_set_aside_that_no_merge_wrote_stays(few, out, theirs):
    kept = out.parent / "m.json.bak"
    kept.write_text(theirs)
    _merge(few, out, 0.5)
    assert kept.read_text() == theirs
    assert _names(out) == {"m.safetensors", "m.json", "m.json.bak"}


def test_the_card_of_the_present_merge_is_not_exchanged_for_an_older_one(few, out):
    older = _with_words(few, out)
    (out.parent / "m.json.bak").write_bytes(older.replace(b"by a person", b"long ago"))
    _merge(few, out, 0.9)
    assert json.loads(out.with_suffix(".json").read_text())["activation text"] == "by a person"
    assert store.read(out.parent / "m.json.bak") == older.replace(b"by a person", b"long ago")
