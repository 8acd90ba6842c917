"""Other tools' preset files: every line is understood or refused in a sentence."""

from __future__ import annotations

import os
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_merge.blocks import ANY, Preset, PresetStore, find_preset_files, import_file, import_presets
from lib_merge.blocks.weights import ElementMatcher, resolve_blocks
from lib_merge.errors import FileFormatError, MergeError, RecipeError
from lib_merge.families import FAMILIES, expand_block_list, family_of, list_lengths
from lib_merge.recipe import ElementRule

ONES17 = (1.0,) * 17
FACE = Preset("Face", "SD1", tuple(float(place % 2) for place in range(17)))


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "presets.json")


def _import(text, name="lbwpresets.txt", family=None):
    report = import_presets(text, name, family)
    return {preset.name: preset for preset in report.entries}, {line.number: line for line in report.lines}


def test_lbwpresets():
    text = "\r\n".join([
        "# mine",
        "OUTD:1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
        "",
        "XL12:" + ",".join(["0.5"] * 12),
        "XL20: " + " , ".join([".5"] * 20),
        "SD26:" + ",".join(["-1"] * 26),
        "FLUX:" + ",".join(["1e-1"] * 61),
        "TOKENS:R,U,X,X+0.1,X - 0.2,X0.5" + ",1" * 11,
        "SHORT:1,1,1",
        "COMMA:" + "1," * 17,
        "HASH#:" + ",".join(["1"] * 17),
        "just some text",
        ":" + ",".join(["1"] * 17),
        "A:B:" + ",".join(["1"] * 17),
        "WORD:one" + ",1" * 16,
        "HOLE:1,," + ",1" * 15,
        "XYZ:" + ",".join(["1"] * 17),
        "low:r" + ",1" * 16,
        "TAB\t" + ",".join(["1"] * 12),
        "outd:" + ",".join(["1"] * 12),
        "Outd:" + ",".join(["1"] * 17),
        "x" * 81 + ":" + ",".join(["1"] * 17),
    ])  # fmt: skip
    found, lines = _import(text)
    assert sorted(lines) == [1, 2, *range(4, 23)]
    outcomes = {number for number, line in lines.items() if line.outcome == "refused"}
    assert outcomes == {9, 12, 13, 15, 16, 22}
    assert {number for number, line in lines.items() if line.outcome == "skipped"} == {1, 11, 17}
    assert found["XL12"].family == found["XL20"].family == "SDXL"
    assert found["SD26"].weights == (-1.0,) * 26
    assert found["FLUX"].family == "Flux"
    assert found["TOKENS"].weights[:6] == ("R", "U", "X", "X+0.1", "X-0.2", "X")
    assert "R and U will be drawn once" in lines[8].says
    *lengths, longest = map(str, sorted(list_lengths()))
    assert f"3 weights; a list has {', '.join(lengths)} or {longest}" in lines[9].says
    assert "comma at the end" in lines[10].says
    assert found["A:B"].weights == ONES17
    assert "weight 1 of 'WORD' is 'one'" in lines[15].says.lower().replace("word", "WORD")
    assert "is missing" in lines[16].says
    assert found["low"].weights[0] == "R"
    assert found["TAB"].family == "SDXL"
    assert found["Outd"].weights == ONES17
    assert "replaces line 2" in lines[21].says
    assert found["outd"].family == "SDXL"
    assert all(line.says.endswith(".") and "\n" not in line.says for line in lines.values())


def test_the_family_given_settles_what_is_open():
    ones = ",".join(["1"] * 17)
    found, lines = _import(f"A:{ones}", family="SD2")
    assert found["A"].family == "SD2"
    found, lines = _import(f"A:{ones}", family="SDXL")
    assert found["A"].family == "SD1"
    assert "does not fit SDXL" in lines[1].says
    with pytest.raises(RecipeError, match="is not a family"):
        import_presets("", "x.txt", "SD7")


def test_mbwpresets_as_text_and_table():
    text = "\n".join([
        "preset_name\tpreset_weights",
        "GRAD_V\t0,1,0.9166666667" + ",0.5" * 22 + ",1.",
        "OLD\t" + ",".join(["0.25"] * 25),
        "COLON:" + ",".join(["1"] * 26),
        "XL\t" + ",".join(["1"] * 20),
        "XL19\t" + ",".join(["1"] * 19),
        "LBW\t" + ",".join(["1"] * 17),
    ])  # fmt: skip
    for name in ("mbwpresets.txt", "mbwpresets.tsv", "mine.tsv", "mine.txt"):
        found, lines = _import(text, name)
        assert lines[1].outcome == "skipped"
        assert len(found["GRAD_V"].weights) == 26
        assert found["OLD"].weights[:2] == (0.0, 0.25)
        assert "no place for BASE" in lines[3].says
        assert len(found["COLON"].weights) == 26
        assert found["XL"].family == "SDXL"
        assert found["XL19"].weights[0] == 0.0
        assert lines[7].outcome == "refused"


def test_elempresets():
    text = "\n".join([
        "ATTNDEEPON:IN05-OUT05:attn:1",
        "",
        "TWO:IN05-OUT05:attn:0,NOT M00:NOT ff_net to_k:0.5",
        "OUT00:proj:2",
        "",
        "XYZ:::1",
        "NEXT:IN09::0.5",
        "FLUX:D00-S05:attn:0",
        "",
        "LATER:",
        ":conv:0",
        "",
        "HALF:IN01:attn:0,IN02:attn,IN03:attn:0",
        "",
        "WRONG:IN0:attn:0",
        "",
        "MIXED:IN05 D00:attn:0",
        "",
        "EMPTY:",
        "",
        "no name here",
        "# end",
    ])  # fmt: skip
    found, lines = _import(text, "elempresets.txt")
    assert found["ATTNDEEPON"].family == ANY
    assert found["TWO"].elements == (
        ElementRule("IN05-OUT05", "attn", 0.0), ElementRule("NOT M00", "NOT ff_net to_k", 0.5), ElementRule("OUT00", "proj", 2.0)
    )  # fmt: skip
    assert found["NEXT"].family == "SD1"
    assert found["FLUX"].family == "Flux"
    assert found["LATER"].elements == (ElementRule("", "conv", 0.0),)
    assert set(found) == {"ATTNDEEPON", "TWO", "NEXT", "FLUX", "LATER"}
    assert lines[6].outcome == "skipped"
    assert "The preset 'HALF' is left out" in lines[13].says
    assert "no family has a block 'IN0'" in lines[15].says
    assert "different families" in lines[17].says
    assert "has no rules" in lines[19].says
    assert "no name" in lines[21].says
    for preset in found.values():
        family = "SD1" if preset.family == ANY else preset.family
        ElementMatcher(preset.elements, family_of(family).blocks, "a")


def test_inspire_presets():
    text = "\n".join([
        "SD-ALL:" + ",".join("1" * 17),
        "SD-AB:A,b,R,U" + ",0" * 13,
        "SD-LyC-OUTALL:1" + ",0" * 14 + ",1" * 12,
        "SDXL-ALL:" + ",".join("1" * 12),
        "SDXL-LyC-MID:1" + ",0" * 8 + ",0,1,0.5" + ",0" * 9,
        "FLUX-DBL-FRONT7:" + ",".join("1" * 8 + "0" * 12),
        "FLUX-DBL-TAIL6:1" + ",0" * 13 + ",1" * 6,
        "FLUX-SINGLE-31to37:1" + ",0" * 49 + ",1" * 8,
        "@FLUX-DBL-FULL:19",
        "@SD-BLOCK1-TEST:17,12,1",
        "FLUX-OWN:%default=1,base=0,double3=.2,single5-9=0.4",
        "SD-OWN:%default=1,in1-2=.5,out=0,mid=.7",
        "SDXL-OWN:%in8=0,mid1=0",
        "OWN:%in1=0",
        "SD-PARTS:1,1 0.5" + ",1" * 15,
        "SD-15:" + ",".join("1" * 15),
        "SD-BAD:%in1",
    ])  # fmt: skip
    found, lines = _import(text, "lbw-preset.custom.txt")
    assert found["SD-AB"].weights[:4] == ("X", 0.5, "R*3", "R*3-1.5")
    assert "B was taken as 1" in lines[2].says
    outs = expand_block_list(found["SD-LyC-OUTALL"].weights, "SD1")[0]
    assert {block for block, value in outs.items() if value} == {
        "BASE",
        "OTHER",
        *(f"OUT{n:02d}" for n in range(12)),
    }
    middle = expand_block_list(found["SDXL-LyC-MID"].weights, "SDXL")[0]
    assert {block for block, value in middle.items() if value} == {"BASE", "M00", "OTHER"}
    assert "M00 takes the second" in lines[5].says
    front = expand_block_list(found["FLUX-DBL-FRONT7"].weights, "Flux")[0]
    assert [b for b, v in front.items() if v] == [
        "CLIP",
        "T5",
        "IN",
        *(f"D{n:02d}" for n in range(7)),
        "OUT",
        "OTHER",
    ]
    tail = expand_block_list(found["FLUX-DBL-TAIL6"].weights, "Flux")[0]
    assert tail["D12"] == 0
    assert tail["D13"] == tail["S37"] == 1
    assert "repeat its last weight" in lines[7].says
    single = expand_block_list(found["FLUX-SINGLE-31to37"].weights, "Flux")[0]
    assert [b for b, v in single.items() if v and b[0] == "S"] == [f"S{n:02d}" for n in range(30, 38)]
    assert lines[9].outcome == lines[10].outcome == "skipped"
    own = found["FLUX-OWN"].weights
    assert (own["CLIP"], own["D01"], own["D02"], own["S04"], own["S08"], own["S09"]) == (
        0,
        1,
        0.2,
        0.4,
        0.4,
        1,
    )
    own = found["SD-OWN"].weights
    assert (own["IN01"], own["IN02"], own["IN04"], own["M00"], own["OUT00"], own["OUT11"]) == (
        0.5,
        0.5,
        1,
        0.7,
        0,
        0,
    )
    assert found["SDXL-OWN"].weights["IN08"] == 0
    assert found["SDXL-OWN"].weights["M00"] == 1
    assert "which family" in lines[14].says
    assert "parts of a block" in lines[15].says
    assert "15 weights" in lines[16].says
    assert lines[17].outcome == "refused"
    assert import_presets("FLUX-DBL-X:" + ",".join("1" * 20), "any.txt").kind == "inspire"
    assert import_presets("SD-OWN:%mid=0", "any.txt").kind == "inspire"


def test_kinds_are_told_by_content_where_the_name_says_nothing():
    ones = ",".join("1" * 17)
    assert import_presets(f"A:{ones}", "upload (1).txt").kind == "lbw"
    assert import_presets("A:IN01:attn:0", "C:\\x\\upload.txt").kind == "elements"
    assert import_presets(f"A\t{ones}", "upload.txt").kind == "mbw"
    assert import_presets("", "upload.txt").entries == ()


def test_encodings():
    ones = ",".join("1" * 17)
    for name, data, says in (
        ("Füße", f"Füße:{ones}".encode(), ""),
        ("Füße", f"Füße:{ones}".encode("utf-8-sig"), ""),
        ("Füße", f"Füße:{ones}".encode("utf-16"), "UTF-16"),
        ("Füße", f"Füße:{ones}".encode("cp1252"), "cp1252"),
        ("动漫脸", f"动漫脸:{ones}".encode("gbk"), "GBK"),
    ):
        found, lines = _import(data)
        assert set(found) == {name}
        assert says in (lines[0].says if 0 in lines else "")
    assert set(_import(f"\ufeffA:{ones}")[0]) == {"A"}


@pytest.mark.parametrize(
    "data", [b"\x00" * 90, os.urandom(50) + b"\x00", b"A:1\x07", b"\xff\xfe\x00\xd8", "A:\x001"]
)
def test_binary_files_are_one_sentence(data):
    with pytest.raises(FileFormatError, match="is not a text file") as error:
        import_presets(data, "lbwpresets.txt")
    assert str(error.value).count(".") <= 2


def test_huge_and_missing_files_are_one_sentence(tmp_path):
    big = tmp_path / "lbwpresets.txt"
    big.write_bytes(b"A:1\n" * 400_000)
    with pytest.raises(FileFormatError, match="has at most"):
        import_file(big)
    with pytest.raises(FileFormatError, match="lines"):
        import_presets("\n" * 6000, "x.txt")
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileFormatError, match="cannot be read"):
            import_file(path)


def test_an_import_goes_into_the_store_and_overwrites_nothing(store):
    store.save(FACE)
    rows = [
        "OUTD:1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
        "OUTALL:0" + ",0" * 7 + ",1" * 9,
        "face:" + ",".join("1" * 17),
    ]
    rows += ["FLUXALL:" + ",".join("1" * 61), "NEW:R" + ",1" * 16, "Face:" + ",".join("1" * 12)]
    entries = import_presets("\n".join(rows), "lbwpresets.txt").entries
    said = store.add(entries)
    assert len(said) == len(entries) == 6
    assert "comes with this program" in said[0]
    assert "as 'OUTALL 2'" in said[1]
    assert "as 'face 2'" in said[2]
    assert "comes with this program" in said[3]
    assert store.names() == ("Face", "OUTALL 2", "face 2", "NEW")
    assert store.get("Face", "SD1") == FACE
    assert store.get("face", "SDXL").name == "Face"
    assert all("already" in sentence for sentence in store.add(entries))
    assert len(store.list()) == 5
    with pytest.raises(RecipeError):
        store.add([Preset("fine", "SD1", ONES17), Preset("", "SD1", ONES17)])
    assert store.get("fine") is None


def test_a_large_import_takes_time_by_its_length_alone(store, tmp_path):
    """Four times the presets take some four times as long; a search through all for each would take sixteen."""
    ones = ",".join("1" * 12)
    spent = []
    for count in (1000, 4000):
        report = import_presets("\n".join(f"n{index}:{ones}" for index in range(count)), "lbwpresets.txt")
        store = PresetStore(tmp_path / f"{count}.json")
        start = time.process_time()
        store.add(report.entries)
        spent.append(time.process_time() - start)
        assert len(store.list()) == count
    assert spent[1] < 9 * spent[0]


PIECES = st.sampled_from([
    "A", "SD-A", "FLUX-A", "@", ":", "::", "\t", ",", ",,", "1", "0.5", "-", "R", "U", "X", "X+0.1", "a", "B", "%", "in1-4=.5",
    "mid=", "double3=1", "IN05-OUT05", "NOT ", "attn", "#", "\n", "\r\n", " ", ",".join("1" * 12), ",".join("1" * 17),
    ",".join("0" * 61), ",".join("1" * 27), "preset_name\tpreset_weights", "\u202e", "é", "١", "1e999", "\ud800", "=",
])  # fmt: skip
FILES = st.sampled_from(
    ["lbwpresets.txt", "elempresets.txt", "mbwpresets.tsv", "lbw-preset.txt", "x.txt", "", "a/../b", "\x00"]
)


def _hold(report):
    for line in report.lines:
        assert line.outcome in ("read", "skipped", "refused")
        assert line.says.endswith(".")
        assert line.says.isprintable()
        line.says.encode("utf-8")
    for preset in report.entries:
        for family in FAMILIES:
            if preset.family == family:
                weights = preset.weights if isinstance(preset.weights, tuple) else dict(preset.weights)
                resolve_blocks(weights, family, ("BASE",), random.Random(0), "a")
                ElementMatcher(preset.elements, family_of(family).blocks, "a")


@given(text=st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=200)), name=FILES, family=st.sampled_from([None, "SD2", "SDXL", "Chroma", "Wan", ANY]))  # fmt: skip
def test_no_text_upsets_an_importer(text, name, family):
    try:
        _hold(import_presets(text, name, family))
    except MergeError as error:
        assert "\n" not in str(error)


@given(data=st.binary(max_size=300), name=FILES)
def test_no_bytes_upset_an_importer(data, name):
    try:
        _hold(import_presets(data, name))
    except MergeError as error:
        assert "\n" not in str(error)


@given(text=st.lists(PIECES, max_size=30).map("".join), name=FILES)
def test_what_was_imported_can_be_stored(tmp_path_factory, text, name):
    try:
        entries = import_presets(text, name).entries
    except MergeError:
        return
    store = PresetStore(tmp_path_factory.mktemp("s") / "p.json")
    assert len(store.add(entries)) == len(entries)
    assert all("already" in sentence for sentence in store.add(entries))
    assert list(PresetStore(store.path).take_warnings()) == []


def test_neighbours_files_are_found(tmp_path):
    webui = tmp_path / "webui"
    places = {
        "extensions/sd-webui-lora-block-weight/scripts/lbwpresets.txt": "lbw",
        "extensions/sd-webui-lora-block-weight/scripts/elempresets.txt": "elements",
        "extensions/sd-webui-supermerger/scripts/mbwpresets.txt": "mbw",
        "extensions/sd-webui-model-mixer/data/mbwpresets.tsv": "mbw",
        "scripts/lbwpresets.txt": "lbw",
        "custom_nodes/ComfyUI-Inspire-Pack/resources/lbw-preset.txt": "inspire",
        "custom_nodes/ComfyUI-Inspire-Pack/resources/lbw-preset.custom.txt": "inspire",
    }
    for place in places:
        path = webui / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("A:" + ",".join("1" * 17))
    (webui / "extensions" / "fake" / "scripts" / "lbwpresets.txt").mkdir(parents=True)
    found = find_preset_files(
        [webui / "extensions", webui / "custom_nodes", webui / "none", webui / "extensions"]
    )
    assert {(item.path.relative_to(webui).as_posix(), item.kind) for item in found} == set(places.items())
    assert any("sd-webui-supermerger" in item.title for item in found)
    single = find_preset_files(sorted((webui / "extensions").iterdir()))
    assert len(single) == 5  # given one by one, the WebUI's own old folder included
    assert import_file(single[0].path).entries
    assert find_preset_files([]) == []
