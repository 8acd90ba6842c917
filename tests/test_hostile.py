"""Input that nobody made in good faith: one sentence about it, and everything else goes on."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from lib_merge.adapters.loha import LoHa
from lib_merge.api import load_recipe, run_recipe
from lib_merge.blocks.imports import import_file
from lib_merge.cli import main
from lib_merge.errors import FileFormatError, MergeError, ModuleError, legible
from lib_merge.library.inspect import inspect_file
from lib_merge.library.library import as_text, read_facts
from lib_merge.recipe import Recipe, Source
from lib_merge.ui.jobs import MOST_WAITING, Jobs
from lib_merge.ui.operations import open_desk
from tests.factories import write_lora
from tests.test_tab_server import Host, _state, _wait

KNOWN = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # 320 × 320
UNKNOWN = "lora_unet_strange_layer_9_lin"


def _save(path, tensors):
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path))
    return path


def _half(*shape):
    return torch.full(shape, 0.01, dtype=torch.float16)


# -------------------------------------------------------------------------------------------- sizes


GROWING = {
    "LoKr": {"lokr_w1": (128, 128), "lokr_w2": (128, 128)},
    "LoKr of pairs": {"lokr_w1": (64, 1), "lokr_w2_a": (512, 2), "lokr_w2_b": (2, 32768)},
    "LoHa": {
        "hada_w1_a": (4096, 3), "hada_w1_b": (3, 40000), "hada_w2_a": (4096, 3), "hada_w2_b": (3, 40000),
    },
    "Tucker": {"lora_up.weight": (4096, 4, 1, 1), "lora_down.weight": (4, 64, 1, 1), "lora_mid.weight": (4, 4, 30, 30)},
    "LoRA": {"lora_up.weight": (60000, 1), "lora_down.weight": (1, 60000)},
}  # fmt: skip


@pytest.mark.parametrize("stem", [KNOWN, UNKNOWN])
@pytest.mark.parametrize("kind", GROWING)
def test_what_no_layer_has_is_refused_from_the_header(kind, stem, tmp_path):
    shapes = GROWING[kind]
    path = _save(
        tmp_path / "a.safetensors", {f"{stem}.{role}": _half(*shape) for role, shape in shapes.items()}
    )
    if kind in ("LoHa", "Tucker") and stem == UNKNOWN:
        shapes = {
            role: tuple(side * 2 if side > 999 else side for side in shape) for role, shape in shapes.items()
        }
        if kind == "Tucker":
            shapes = {**shapes, "lora_mid.weight": (4, 4, 60, 60)}
        path = _save(
            tmp_path / "a.safetensors", {f"{stem}.{role}": _half(*shape) for role, shape in shapes.items()}
        )
    with pytest.raises(ModuleError, match=r"its factors make [\d,]+ × [\d,]+, and (the layer has|no layer)"):
        inspect_file(path)
    assert "its factors make" in read_facts(path)["problem"]


def test_a_layer_may_be_somewhat_wider_than_the_familys(tmp_path):
    usual = {f"{KNOWN}.lora_up.weight": _half(320, 2), f"{KNOWN}.lora_down.weight": _half(2, 320)}
    other = KNOWN.replace("to_q", "to_k")
    for side, fits in ((512, True), (1280, True), (32_000, False)):
        wide = {f"{other}.lora_up.weight": _half(side, 2), f"{other}.lora_down.weight": _half(2, 800)}
        path = _save(tmp_path / "a.safetensors", usual | wide)
        if fits:
            inspect_file(path, "SD1")
        else:
            with pytest.raises(ModuleError, match=r"make 32,000 × 800, and the layer has 320 × 320"):
                inspect_file(path, "SD1")


@pytest.mark.parametrize("stem", [KNOWN, UNKNOWN])
def test_a_rank_that_no_matrix_has_is_refused_before_its_grams_are_taken(stem, tmp_path):
    tensors = {f"{stem}.lora_up.weight": _half(4, 100_000), f"{stem}.lora_down.weight": _half(100_000, 4)}
    path = _save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ModuleError, match="it has rank 100,000, and 4 × 4 has at most 4"):
        inspect_file(path)
    tensors = {f"{stem}.lora_up.weight": _half(4, 128), f"{stem}.lora_down.weight": _half(128, 4)}
    assert inspect_file(_save(path, tensors))["norm"] > 0  # as trainers write it for a narrow layer


PARTS = {
    "lokr": {"lokr_w1_a": 2, "lokr_w1_b": 2, "lokr_w2_a": 2, "lokr_w2_b": 2, "lokr_t2": 4},
    "lokr whole": {"lokr_w1": 2, "lokr_w2": 2},
    "hada": {"hada_w1_a": 2, "hada_w1_b": 2, "hada_w2_a": 2, "hada_w2_b": 2, "hada_t1": 4, "hada_t2": 4},
    "lora": {"lora_up.weight": 2, "lora_down.weight": 2, "lora_mid.weight": 4, "alpha": 0},
    "full": {"diff": 2, "diff_b": 1},
}


@pytest.mark.parametrize("kind", PARTS)
def test_any_number_of_axes_anywhere_is_taken_or_refused_in_words(kind, tmp_path):
    """Each tensor with each number of axes, the others right, and with a core or without."""
    for left in (set(), {"lokr_t2", "hada_t1", "hada_t2", "lora_mid.weight"}):
        usual = {role: (2,) * axes for role, axes in PARTS[kind].items() if role not in left}
        for role in usual:
            for axes in range(9):
                shapes = {**usual, role: (2,) * axes}
                path = _save(
                    tmp_path / "a.safetensors", {f"{UNKNOWN}.{r}": _half(*s) for r, s in shapes.items()}
                )
                problem = read_facts(path)["problem"]
                assert "understood" not in problem, shapes
                if not problem:
                    assert inspect_file(path)["norm"] > 0, shapes


@pytest.mark.parametrize("core", [False, True])
def test_the_norm_of_a_loha_is_that_of_its_matrix(core):
    draw = torch.Generator().manual_seed(3)
    a, b = ((3, 30), (3, 40)) if core else ((30, 3), (3, 40))
    shapes = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}
    shapes |= {"hada_t1": (3, 3, 2, 2), "hada_t2": (3, 3, 2, 2)} if core else {}
    tensors = {role: torch.randn(*shape, generator=draw) for role, shape in shapes.items()}
    tensors["alpha"] = torch.tensor(1.5)
    dense = LoHa().load(tensors, None, None).dense()
    assert LoHa().norm(tensors, None) == pytest.approx(float(dense.double().norm()), rel=1e-5)
    assert LoHa().norm(tensors, 2.0) == pytest.approx(4 * LoHa().norm(tensors, None))


# -------------------------------------------------------------------------------------------- jobs


def test_so_many_jobs_wait_and_no_more():
    jobs, go = Jobs(), threading.Event()

    def work(task):
        go.wait(30)
        return {}

    before = threading.active_count()
    first = jobs.start("merge", work)
    while first.state == "waiting":
        pass
    tasks = [jobs.start("analyze", work) for _ in range(MOST_WAITING)]
    for _ in range(100):
        with pytest.raises(MergeError, match=f"{MOST_WAITING} jobs are waiting already"):
            jobs.start("verify", work)
    jobs.start("report", work)  # work for later takes nobody's place
    assert threading.active_count() <= before + MOST_WAITING + 2
    jobs.cancel(tasks[0].id)
    tasks.append(jobs.start("merge", work))
    go.set()
    assert all(_ended(task) for task in (first, *tasks))


# -------------------------------------------------------------------------------------------- names


ODD = pytest.mark.skipif(os.name == "nt", reason="no such name can be there")


@pytest.fixture
def desk(tmp_path):
    """A tab's server side over two good LoRAs, one under a name that is no text, if the disk takes it."""
    host = Host(tmp_path)
    write_lora(host.folder / "good.safetensors", seed=1)
    odd = host.folder / os.fsdecode(b"sub/caf\xe9 \\x.safetensors")
    try:
        write_lora(host.folder / "plain.safetensors", seed=2).rename(odd)
    except OSError:
        pytest.skip("this disk takes only names in UTF-8")
    found = open_desk(host)
    found.library.refresh(wait=True)
    return found


def _ask(desk, op, **fields):
    """Ask as the page does; the answer must be JSON that every encoder takes."""
    text = desk.handle(json.dumps({"op": op, "token": desk.token, **fields}))
    text.encode("utf-8")
    reply = json.loads(text)
    json.dumps(reply, ensure_ascii=False).encode("utf-8")
    assert reply["ok"], reply
    return reply


@ODD
def test_a_name_that_is_no_text_is_shown_escaped_and_merged(desk, tmp_path):
    items = {item["name"]: item for item in _ask(desk, "library")["items"]}
    assert set(items) == {"good", "caf\\udce9 \\x"}
    item = items["caf\\udce9 \\x"]
    key = item["key"]
    assert desk.library.resolve(key).name == os.fsdecode(b"caf\xe9 \\x.safetensors")
    assert _ask(desk, "inspect", key=key)["found"]["family"] == "SD1"
    assert _ask(desk, "inspect", name=item["name"])["found"]["norm"] > 0
    state = _state(("0/good.safetensors", 0.5, {}), (key, 0.5, {}))
    assert "caf" in json.dumps(_ask(desk, "plan", state={**state, "output": {"template": "{sources}"}}))
    done = _wait(desk, _ask(desk, "merge", state=state))
    assert done["state"] == "done", done
    dumped = _ask(desk, "job", job=done["job"])
    assert dumped["result"]["relative_error"] < 1e-3
    history = _ask(desk, "history")["entries"]
    assert "caf\\udce9" in json.dumps(history, ensure_ascii=False).replace("\\\\", "\\")
    again = _wait(desk, _ask(desk, "again", entry=history[0]["id"]))
    assert again["result"]["same_tensors"], again
    opened = _ask(desk, "open", key=done["result"]["key"])["state"]
    assert sorted(row["key"] for row in opened["sources"]) == sorted(["0/good.safetensors", key])
    _wait(desk, _ask(desk, "verify", key=done["result"]["key"]))
    _wait(desk, _ask(desk, "analyze", state=state))


@ODD
@pytest.mark.parametrize(
    "raw", [b"a\xff", b"\\udcff\xff", b"\\\xff", b"\xed\xa0\x80", b"\xe9/\xe9", b"n\nl\xe9", b"u\\u0041\xff"]
)
def test_every_path_has_one_key_which_is_a_text(raw, tmp_path):
    host = Host(tmp_path)
    path = host.folder / os.fsdecode(raw + b".safetensors")
    others = [host.folder / f"{as_text(os.fsdecode(raw)).replace('/', '_')}.safetensors"]
    try:
        for one in (path, *others):
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_bytes(b"x")
    except OSError:
        pytest.skip("this disk takes only names in UTF-8")
    library = open_desk(host).library
    library.refresh(wait=True)
    keys = [item.key for item in library.items()]
    assert len(set(keys)) == 2
    assert {library.resolve(key) for key in keys} == {path, *others}
    for key in keys:
        key.encode("utf-8")
        assert library.key_of(library.resolve(key)) == key


@pytest.mark.parametrize("key", ["0//etc/passwd", "0///etc/passwd.pt", "0//..\\udc2f..", "0//\\u0000.pt", "0//", "0//../a.pt", "0//\\"])  # fmt: skip
def test_an_escaped_key_leads_nowhere_else(key, tmp_path):
    library = open_desk(Host(tmp_path)).library
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(MergeError):
        library.resolve(key)


def test_half_a_character_in_a_tag_or_side_car_is_no_obstacle(tmp_path):
    host = Host(tmp_path)
    tags = json.dumps({"x": {"\ud800 half": 3}})
    write_lora(
        host.folder / "a.safetensors", metadata={"ss_tag_frequency": tags, "ss_output_name": "\\ud800"}
    )
    write_lora(host.folder / "b.safetensors", seed=2)
    for name in ("a", "out"):
        (host.folder / f"{name}.json").write_text(
            json.dumps({"activation text": "\udc80", "notes": "\ud800"})
        )
    desk = open_desk(host)
    assert "\\ud800" in json.dumps(_ask(desk, "loras")["items"], ensure_ascii=False)
    _ask(desk, "library")
    _ask(desk, "inspect", name="a")
    state = _state(("0/a.safetensors", 0.5, {}), ("0/b.safetensors", 0.5, {}))
    _ask(desk, "plan", state=state)
    done = _wait(desk, _ask(desk, "merge", state=state))
    assert done["state"] == "done", done
    _ask(desk, "job", job=done["job"])
    _ask(desk, "history")


# -------------------------------------------------------------------------------------------- recipes


def _recipe(tmp_path, **changes):
    path = write_lora(tmp_path / "a.safetensors")
    recipe = Recipe((Source(path=path, name=path.name, ratio=0.5),)).to_json()
    return {**recipe, **changes}


WRONG = [
    {"sources": [{"name": "a.safetensors", "ratio": 10**400}]},
    {"sources": {"a": 1}},
    {"sources": [7]},
    {"sources": None},
    {"seed": "a"},
    {"knobs": [1]},
    {"conv_rank": "z"},
    {"prune": "q"},
    {"method": ["x"]},
    {"precision": 7},
    {"version": 10**400},
]


@pytest.mark.parametrize("changes", WRONG, ids="-".join)
def test_a_recipe_with_a_field_of_a_wrong_sort_is_refused_in_words(changes, tmp_path):
    file = tmp_path / "r.json"
    file.write_text(json.dumps(_recipe(tmp_path, **changes)))
    with pytest.raises(MergeError) as refused:
        run_recipe(load_recipe(file), tmp_path / "m.safetensors")
    said = str(refused.value)
    assert said.isprintable()
    assert not any(word in said for word in ("Error", "object has no attribute", "NoneType", "indices"))


def test_a_recipe_is_a_small_plain_file(tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(600 << 20)
    for path, said in (
        (large, "larger than 8 MB"),
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "no such"),
    ):
        with pytest.raises(MergeError, match=said if path != tmp_path else "."):
            load_recipe(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(MergeError, match="no plain file"):
            load_recipe(tmp_path / "pipe.json")
        with pytest.raises(MergeError, match="no plain file"):
            import_file(tmp_path / "pipe.json")


def test_nobody_may_read_what_the_command_line_prints(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["methods"]) == 0


# -------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain ünï 日本 😀", "plain ünï 日本 😀"),
        ("a\x00b\nc\r\x1b[31m", "a\\x00b\\nc\\r\\x1b[31m"),
        ("\u202egnp \ud800 \u2028", "\\u202egnp \\ud800 \\u2028"),
        ("a\u00a0b\u3000c می\u200cخواهم", "a\u00a0b\u3000c می\u200cخواهم"),
    ],
)
def test_a_message_shows_what_stands_in_names_escaped(given, shown):
    assert legible(given) == shown
    assert str(MergeError(f"no {given} there.")) == f"no {shown} there."


def test_a_message_stays_short_and_keeps_both_ends_of_a_name():
    text = str(FileFormatError(f"{'x' * 9000}.safetensors is damaged: {'y z' * 9000}."))
    assert len(text) < 1700
    assert text.startswith("xxx")
    assert "….safetensors is damaged" not in text
    assert "x.safetensors is damaged: y zy" in text
    assert text.endswith(" …")


@pytest.mark.parametrize("sign", ["\x00", "\n", "\x1b[2J", "\u202e", "x" * 50_000])
def test_keys_of_any_signs_are_named_on_one_short_line(sign, tmp_path):
    stem = f"lora_unet_{sign}_y"
    for number, tensors in enumerate(
        [
            {f"{stem}.lora_up.weight": _half(4, 2), f"{stem}.lora_down.weight": _half(3, 4)},
            {f"{stem}.lora_up.weight": _half(4, 2)},
            {f"{stem}.alpha": _half(2)},
            {f"{stem}.lora_up.weight": _half(4, 2).int(), f"{stem}.lora_down.weight": _half(2, 4).int()},
            {f"{stem}.lora_gate.weight": _half(4, 2)},
        ]
    ):
        problem = read_facts(_save(tmp_path / f"{number}.safetensors", tensors))["problem"]
        assert problem.isprintable()
        assert 10 < len(problem) <= 300


def _ended(task):
    for _ in range(600):
        if task.ended:
            return True
        threading.Event().wait(0.05)
    return False
