"""Changed JSON wherever JSON is read: recipes, presets (ours and other tools'), side-cars, PEFT's configurations, what
headers carry, what versions before kept; requests of the tab; bodies of the REST API.

Whatever it is, it is understood or refused in a sentence, and every answer is JSON that a browser takes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_merge import Job, Recipe, Source, merge, metadata, open_lora
from lib_merge.blocks.imports import import_presets
from lib_merge.blocks.presets import Preset
from lib_merge.blocks.store import PresetStore
from lib_merge.engine.survey import foresee
from lib_merge.engine.tree import open_tree
from lib_merge.errors import MergeError
from lib_merge.kept.archive import Archive
from lib_merge.kept.changes import differences
from lib_merge.library.inspect import inspect_file
from lib_merge.library.library import read_facts
from lib_merge.library.recipes import RecipeBook
from lib_merge.methods import METHODS
from lib_merge.recipe import loads, with_paths
from lib_merge.ui.describe import example
from lib_merge.ui.desk import OPERATIONS
from tests.campaigns.desks import PAIR, desk_at, ended, furnish, merged, state
from tests.campaigns.harness import Campaign, Inputs, NotHere, Problem, sentence
from tests.campaigns.small_files import METADATA, PEFT, generated, good, save_tensors

DEEP, LONG = "\ue000deep\ue000", "\ue000long\ue000"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 2**31, 2**53 + 1, 2**63, 2**64,
    10**400, -(10**400), 10**4400, "", "0", "1", "a", "x" * 300, "x" * 30_000, "\0", "\n", "\u202e", "\ud800", "\udcff.safetensors", "é" * 90,
    "nan", "1e400", "../../x", "..", ".", "/etc/passwd", "CON", "a/b", "a\\b", "C:x", "<lora:a:1>", "{n}", "{sources}", "weighted_sum", "ties", "[", "{",
    [], {}, [[]], [None], [0, 0], [1.0] * 17, [0.5] * 300, [{}], {"": ""}, {"a": 1}, {"__proto__": {}}, {"x": {"y": [1, {"z": None}]}}, DEEP, DEEP, LONG,
]  # fmt: skip
KEYS = [
    "",
    "x",
    "op",
    "id",
    "sources",
    "method",
    "ratio",
    "name",
    "\ud800",
    "\0",
    "version",
    "recipe",
    "format",
    "__class__",
    "x" * 500,
    "families",
]


# ------------------------------------------------------------------------------------------------ changes


def spots(value: Any, at: tuple = ()) -> list[tuple]:
    """Return the place of everything in a value."""
    found = [at]
    if isinstance(value, dict):
        for key, item in value.items():
            found += spots(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += spots(item, (*at, index))
    return found


def changed(value: Any, rng: random.Random, others: list[Any]) -> Any:
    """Return a value with some of its parts exchanged, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        places = spots(value)
        at = rng.choice(places)
        if not at:
            if rng.random() < 0.1:
                value = copy.deepcopy(rng.choice(VALUES))
            continue
        *way, last = at
        holder = value
        for step in way:
            holder = holder[step]
        kind = rng.randrange(7)
        if kind <= 2:
            holder[last] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            del holder[last]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(KEYS)] = (
                holder.pop(last) if rng.random() < 0.5 else copy.deepcopy(rng.choice(VALUES))
            )
        elif kind == 5 and isinstance(holder, list):
            holder.extend([holder[last]] * rng.choice((1, 2, 70)))
        else:
            holder[last] = _near(holder[last], rng, others)
    return value


def _near(value: Any, rng: random.Random, others: list[Any]) -> Any:
    """Return something of the same sort, or a piece of another document."""
    if isinstance(value, bool) or value is None:
        return not value
    if _endless(value):
        return -value
    if isinstance(value, (int, float)):
        return rng.choice(
            (-value, value * 1000, value + 0.5 if abs(value) < 1e300 else 0.5, str(value), [value], 1.5)
        )
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return (
            value[:at]
            + rng.choice(
                ("", "\0", "\ud800", ",", ":", "=", "-", "9" * 30, "\u202e", "é", " ", "R", "U", "%")
            )
            + value[at + rng.randrange(2) :]
        )
    other = rng.choice(others)
    return copy.deepcopy(rng.choice([other, *(other.values() if isinstance(other, dict) else [])]))


def written(value: Any, rng: random.Random) -> bytes:
    """Return a value as JSON, and that sometimes spoilt as a text."""
    with _digits():
        text = json.dumps(value, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, None, 1)))
    text = text.replace(json.dumps(DEEP), _deep(rng)).replace(f'"{DEEP}"', _deep(rng))
    text = text.replace(json.dumps(LONG), f'"{"y" * 200_000}"').replace(
        f'"{LONG}"', "[" + "0," * 20_000 + "0]"
    )
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.12:
        at = rng.randrange(len(data) + 1)
        piece = rng.choice(
            (
                b"",
                b",",
                b"}",
                b"]",
                b"\xff",
                b"\x00",
                b"\xef\xbb\xbf",
                b'"',
                b"\\u",
                b"1e999999",
                b"/*x*/",
                b"NaN",
                b'"a":1,"a":2,',
            )
        )
        data = data[:at] + piece + data[at + rng.randrange(3) :]
    if rng.random() < 0.03:
        data = rng.choice(
            (
                b"\xef\xbb\xbf" + data,
                data.decode("utf-8", "replace").encode("utf-16"),
                data[: len(data) // 2],
                b"",
                data + data,
            )
        )
    return data


def _deep(rng: random.Random) -> str:
    depth = rng.choice((20, 900, 100_000))
    return "[" * depth + "]" * depth if rng.random() < 0.5 else '{"recipe":' * depth + "0" + "}" * depth


@contextlib.contextmanager
def _digits():
    """Let a number of very many digits be written; reading one is refused all the same."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


# ------------------------------------------------------------------------------------------------ documents


def recipes() -> list[dict[str, Any]]:
    """Return sound recipes: methods with their knobs, block weights of every notation, groups."""
    sources = (
        {"name": "a.safetensors", "ratio": 0.6},
        {"name": "b.safetensors", "ratio": 0.4, "sha256": "0" * 64, "size": 12},
    )
    told = [
        {}, {"blocks": "STYLE"}, {"blocks": "1,0,R,U,X+0.25,1,1,1,1,1,1,1,1,1,1,1,1 x=0.5"}, {"blocks": {"IN04": 0.5}}, {"te_ratio": [0.2, 0.9]}, {"te_ratio": 0.3},
        {"elements": [["OUT03-OUT08", "ff", 0.25], ["NOT IN00-IN05", "attn1", 1.5]]}, {"blocks": [0.5] * 17}, {"blocks": "IN04=0.5,M00=2,BASE=3"},
    ]  # fmt: skip
    found = []
    for number, (name, method) in enumerate(METHODS.items()):
        count = max(2, method.sources[0])
        listed = [{**sources[at % 2], **told[(number + at) % len(told)]} for at in range(count)]
        for one, role in zip(listed, method.roles):
            one["role"] = role
        knobs = {knob.name: knob.default for knob in method.knobs}
        rank = (
            "8"
            if method.space == "dense"
            else ("lossless", "energy:0.9", "error:0.05", "budget:1MB", "3")[number % 5]
        )
        found.append({
            "format": Recipe((Source(name="x"),)).to_json()["format"], "version": 1, "sources": listed, "method": name, "knobs": knobs, "rank": rank,
            "conv_rank": None, "prune": 0.0, "precision": ("fp16", "bf16", "float")[number % 3], "seed": number, "family": None,
        })  # fmt: skip
    group = {key: value for key, value in found[0].items() if key not in ("format", "version")}
    found.append({**found[0], "sources": [{"recipe": group, "ratio": 0.7, "name": "styles"}, sources[1]]})
    return found


LINES = (
    "STYLE2:1,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1,1\nMINE:1,1,1,1,1,1,1,1,1,1,1,1\n# a comment\nR:R,U,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "ATTNDEEPON:IN05-OUT05:attn:1\nATTNDEEPOFF:IN05-OUT05:attn:0\nX:NOT IN00:ff:0.5,M00::0.25",
    "preset_name\tpreset_weights\nGRAD_V\t1,0.9166,0.8333,0.75,0.6666,0.5833,0.5,0.4166,0.3333,0.25,0.1666,0.0833,0,0.0833,0.1666,0.25,0.3333,0.4166,0.5,0.5833,0.6666,0.75,0.8333,0.9166,1.0",
    "@SD-BLOCK1:1,1,1,0,0\nFLUX-ALL:%default=1.0,double.*=0.5\nSD-NONE:0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
)  # fmt: skip
FILE_NAMES = (
    "lbwpresets.txt",
    "elempresets.txt",
    "mbwpresets_master.txt",
    "lbw-preset.txt",
    "x.txt",
    "x.tsv",
    "\u202e.txt",
)
SIDE_CAR = {
    "description": "a style", "sd version": "SD1", "activation text": "ink, wash", "preferred weight": 0.8, "negative text": "blurry", "notes": "by me",
    metadata.WRITTEN_KEY: {"description": "merged: a@1 (weighted_sum, lossless)", "notes": "", "activation text": "ink"},
}  # fmt: skip
ENTRY = {
    "version": 1, "id": "000001-0123abcd", "time": "2026-01-01T00:00:00+00:00", "name": "out", "key": "0/out.safetensors", "recipe": {}, "method": "weighted_sum",
    "sources": [{"name": "a", "ratio": 0.6}], "report": {"relative_error": 0.0002, "rank": {"min": 1, "max": 3}, "bytes": 12, "warnings": [], "tensor_hash": "ab"},
    "based_on": "", "verdict": {"against": "better", "preserved": {"a": "yes"}}, "notes": "good", "rating": 4, "status": "ok", "grid": "",
}  # fmt: skip
PRESETS = {
    "format": "lora-merge-presets", "version": 1,
    "presets": [
        {"name": "faces", "families": {"SD1": {"weights": {"IN04": 0.5, "OUT03": 2.0}}, "SDXL": {"weights": ["R", 1, 0.5, "U", 1, 1, 1, 1, 1, 1, 1, 1]}}},
        {"name": "hands", "families": {"SD1": {"weights": {}, "elements": [["OUT03", "ff", 0.25]]}}},
    ],
}  # fmt: skip
COMPARISON = {
    "version": 1,
    "sources": ["a", "b"],
    "columns": [{"label": "merge", "kind": "merge", "recipe": {}}],
    "rows": ["x"],
    "figures": [{}],
    "stopped": False,
}
CACHE = {
    "version": 1,
    "files": {
        "/loras/a.safetensors": [
            12,
            34,
            {"family": "SD1", "candidates": ["SD1"], "rank": [1, 2], "problem": ""},
        ]
    },
}
THROWN = {
    "version": 1,
    "time": "2026-01-01T00:00:00+00:00",
    "why": "deleted",
    "folder": "/loras",
    "files": {"0123abcd-x.safetensors": "x.safetensors"},
}


class Documents(Campaign):
    """Files that hold JSON or are read line by line."""

    name = "json"
    aim = 20_000
    share = 1.5

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._lora, self._peft = folder / "a.safetensors", folder / "peft" / "adapter_model.safetensors"
        self._lora.write_bytes(save_tensors(good(), METADATA))
        self._peft.parent.mkdir()
        self._peft.write_bytes(save_tensors(generated()["peft"]))
        self._recipes = recipes()
        self._seeds: dict[str, list[Any]] = {
            "recipe": self._recipes, "presets": [PRESETS], "lines": list(LINES), "side-car": [SIDE_CAR], "peft": [PEFT], "header": [METADATA],
            "book": self._recipes[:5], "kept": [ENTRY, {**ENTRY, "recipe": self._recipes[0]}, COMPARISON, CACHE], "thrown": [THROWN],
        }  # fmt: skip
        self._others = [one for listed in self._seeds.values() for one in listed]
        self._count = 0

    def make(self, number: int, rng: random.Random) -> Inputs:
        kind = rng.choice(("recipe", "recipe", "recipe", *self._seeds))
        seed = rng.choice(self._seeds[kind])
        if kind == "lines":
            text = seed
            for _ in range(rng.choice((1, 2, 4))):
                text = _near(text, rng, ["x"])
            data = text.encode("utf-8", "surrogatepass") if rng.random() < 0.8 else written(seed, rng)
            return {"lines.json": data, "name.txt": rng.choice(FILE_NAMES).encode()}
        if kind == "header":
            return {"header.json": written(_in_texts(seed, rng, self._others), rng)}
        return {f"{kind}.json": written(changed(seed, rng, self._others), rng)}

    def attempt(self, inputs: Inputs) -> str:
        self._count += 1
        kind = next(iter(inputs)).removesuffix(".json")
        doing: dict[str, Callable[[bytes], str]] = {
            "recipe": self._recipe, "presets": self._presets, "side-car": self._side_car, "peft": self._config, "header": self._header,
            "book": self._book, "kept": self._kept, "thrown": self._thrown, "lines": lambda data: self._lines(data, inputs["name.txt"].decode()),
        }  # fmt: skip
        try:
            return f"{kind} {doing[kind](inputs[f'{kind}.json'])}"
        except MergeError as error:
            sentence(error)
            return f"{kind} refused"

    def _recipe(self, data: bytes) -> str:
        recipe = loads(data.decode("utf-8", "replace"), "x.json")
        recipe.check()
        again = loads(recipe.dumps())
        if again.dumps() != recipe.dumps():
            raise Problem("other", "a recipe that was written and read says something else")
        loads(recipe.brief())
        metadata.describe_recipe(recipe)
        differences(recipe.to_json(), self._recipes[0])
        with open_tree(with_paths(recipe, lambda source: self._lora)) as tree:
            foresee(tree)
        return "read and foreseen"

    def _presets(self, data: bytes) -> str:
        path = self.folder / "presets.json"
        path.write_bytes(data)
        try:
            store = PresetStore(path)
            known = store.list()
            store.save(Preset("mine", "SD1", {"IN04": 0.25}))
            warned = store.take_warnings()
            if not PresetStore(path).get("mine", "SD1"):
                raise Problem("lost", f"a preset that was saved is not there; warnings: {warned}")
            kept = any(one.read_bytes() == data for one in self.folder.glob("presets*"))
            if warned and not kept and "broken" in str(warned):
                raise Problem("lost", "a broken file of presets was not set aside")
        finally:
            for one in self.folder.glob("*presets*"):
                one.unlink()
        return "read" if known else "set aside"

    def _lines(self, data: bytes, name: str) -> str:
        report = import_presets(data, name)
        for line in report.lines:
            if not str(line.text if hasattr(line, "text") else line).isprintable():
                raise Problem("other", f"a line of the report with control characters: {line!a}"[:300])
        return "read" if report.entries else "without presets"

    def _side_car(self, data: bytes) -> str:
        path = self._lora.with_suffix(".json")
        path.write_bytes(data)
        try:
            read_facts(self._lora)
            metadata.trigger_words([(Source(path=self._lora, name="a"), {})])
            if self._count % 4 == 0:
                out = self.folder / "m.safetensors"
                out.with_suffix(".json").write_bytes(data)
                merge([self._lora], save_to=out, job=Job(overwrite=True))
                json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
                open_lora(out).close()
        finally:
            for one in (path, *self.folder.glob("m.*")):
                one.unlink()
            shutil.rmtree(self.folder / ".lora-merge", ignore_errors=True)
        return "used"

    def _config(self, data: bytes) -> str:
        path = self._peft.with_name("adapter_config.json")
        path.write_bytes(data)
        try:
            inspect_file(self._peft)
        finally:
            path.unlink()
        return "used"

    def _header(self, data: bytes) -> str:
        try:
            texts = json.loads(data)
        except (ValueError, RecursionError):
            return "no JSON"
        texts = (
            {str(name): text for name, text in texts.items() if isinstance(text, str)}
            if isinstance(texts, dict)
            else {}
        )
        path = self.folder / "h.safetensors"
        try:
            path.write_bytes(save_tensors(good(), texts))
        except (UnicodeError, ValueError, RuntimeError):
            return "no header"
        facts = read_facts(path)
        json.dumps(facts, allow_nan=False)
        inspect_file(path)
        if self._count % 3 == 0:
            out = self.folder / "m.safetensors"
            merge([path, self._lora], save_to=out, job=Job(overwrite=True))
            for one in self.folder.glob("m.*"):
                one.unlink()
        return "used"

    def _book(self, data: bytes) -> str:
        folder = self.folder / "recipes"
        folder.mkdir(exist_ok=True)
        (folder / "mix.json").write_bytes(data)
        book = RecipeBook(folder)
        book.names()
        recipe = book.get("mix")
        if recipe is not None:
            recipe.check()
            book.save("again", recipe, overwrite=True)
        return "read"

    def _kept(self, data: bytes) -> str:
        folder = self.folder / "data"
        shutil.rmtree(folder, ignore_errors=True)
        for place in ("history/entries", "history/reports", "comparisons"):
            (folder / place).mkdir(parents=True)
            (folder / place / "000001-0123abcd.json").write_bytes(data)
        (folder / "library.json").write_bytes(data)
        archive = Archive(folder)
        [entry] = archive.history.list()
        archive.history.list("words of a search")
        archive.comparisons.newest()
        for ask in (
            lambda: archive.comparisons.get("000001-0123abcd"),
            lambda: archive.reports.read("000001-0123abcd"),
            lambda: archive.history.diff(entry.id, entry.id),
        ):
            with contextlib.suppress(MergeError):
                ask()
        archive.facts("header", 1).load()
        json.dumps(entry.to_json())
        return "broken" if entry.status == "broken" else "taken over"

    def _thrown(self, data: bytes) -> str:
        try:
            from lib_merge.files.trash import Trash
        except ImportError:
            return "has no reader"
        folder = self.folder / "trash"
        folder.mkdir(exist_ok=True)
        (folder / "0123abcd.trash.json").write_bytes(data)
        (folder / "0123abcd-x.safetensors").write_bytes(b"x")
        for thing in Trash(folder).things():
            if set(thing.files) - {"0123abcd-x.safetensors"} and any("/" in name for name in thing.files):
                raise Problem("other", f"a note leads elsewhere: {thing.files}")
        return "read"


def _in_texts(table: dict[str, str], rng: random.Random, others: list[Any]) -> dict[str, Any]:
    """Return metadata whose texts, which may be JSON themselves, were changed."""
    table = {**table, metadata.RECIPE_KEY: json.dumps(recipes()[0])} if rng.random() < 0.5 else dict(table)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(list(table))
        text = table[name]
        if isinstance(text, str) and text[:1] in "[{" and text and rng.random() < 0.8:
            table[name] = (
                written(changed(json.loads(text), rng, others), rng).decode("utf-8", "replace")
                if _is_json(text)
                else text[1:]
            )
        else:
            table[name] = rng.choice(
                [one if isinstance(one, str) else str(one)[:400] for one in VALUES if not _endless(one)]
            )
    return table


def _endless(value: object) -> bool:
    return isinstance(value, int) and abs(value) > 10**1000


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# ------------------------------------------------------------------------------------------------ requests

PROMPT = "a cat <lora:a:0.6:lbw=OUT03-OUT05=0.5:x=1> <lora:b:te=0.2:unet=1:lbwe=ATTNDEEPON> (ink:1.2)"
# work that takes a thread and its time: now and then only
HEAVY = {"merge", "again", "verify", "analyze", "report_make", "partners"}


def requests(entry: str) -> list[dict[str, Any]]:
    """Return sound requests: of every operation an example, and more of those that say most."""
    row = {
        "key": PAIR[0],
        "ratio": 0.5,
        "te": [0.2, None],
        "blocks": {"IN04": 0.5},
        "elements": "OUT03-OUT05:ff:0.5",
        "role": "",
        "group": "1",
        "id": 3,
    }
    rich = state(
        "x {sources} {n}", groups={"1": {"method": "ties", "ratio": 0.5, "knobs": {"ties": {"trim_fraction": 0.3}}}}, rank={"mode": "rank", "value": 4},
        conv_rank=2, prune=0.01, seed=3, knobs={"weighted_sum": {}}, names="kohya", defaults={"template": "x"},
    )  # fmt: skip
    rich["sources"] = [row, {**row, "key": PAIR[1]}, {"name": "b", "key": PAIR[1]}]
    rich["output"] |= {
        "triggers": "ink",
        "notes": "why",
        "based_on": entry,
        "preview": {"like": PAIR[0]},
        "folder": "sub",
    }
    recipe = json.dumps(recipes()[0])
    own = [
        {"op": "plan", "state": state()}, {"op": "plan", "state": rich}, {"op": "plan", "state": {**rich, "method": "ties", "rank": {"mode": "budget", "value": 1}}},
        {"op": "merge", "state": rich}, {"op": "merge", "state": state("m")}, {"op": "recipe_save", "name": "mix", "state": rich, "overwrite": True},
        {"op": "apply", "state": rich, "changes": {"ratios": [0.5, None], "method": "slerp", "rank": "8", "keep": [0], "aside": ["A"], "blocks": [{"IN04": 1}, "STYLE"]}},
        {"op": "prompt", "text": PROMPT}, {"op": "prompt", "text": recipe}, {"op": "prompt_write", "state": rich}, {"op": "blocks", "text": "1,0,R,U,X 1", "family": "SD1"},
        {"op": "open", "text": recipe}, {"op": "open", "entry": entry}, {"op": "open", "recipe": "out"}, {"op": "open", "key": "0/out.safetensors"},
        {"op": "preset_save", "name": "p", "family": "SD1", "weights": {"IN04": 0.5}, "elements": "OUT03:ff:0.5"}, {"op": "preset_rename", "name": "p", "to": "q"},
        {"op": "preset_import", "text": LINES[0], "name": "lbwpresets.txt", "family": "SD1"}, {"op": "history", "search": "out", "count": 3},
        {"op": "history_update", "entry": entry, "verdict": {"preserved": {"a": "yes"}, "against": "better"}, "notes": "x", "status": "revise", "rating": 3},
        {"op": "history_diff", "entry": entry, "other": entry}, {"op": "rename", "entry": entry, "to": "other"}, {"op": "verdict", "entry": entry, "verdict": {}},
        {"op": "inspect", "key": PAIR[0]}, {"op": "look", "key": PAIR[0]}, {"op": "library", "since": "x:3"}, {"op": "job", "job": 1}, {"op": "report", "entry": entry},
        {"op": "picture_text", "text": f"a cat\nSteps: 20, merge_recipe: {json.dumps(recipe)}"}, {"op": "preview_set", "text": recipe, "image": "data:image/png;base64,iVBORw0KGgo="},
        {"op": "prompt", "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="},
        {"op": "again", "entry": entry, "name": "once more"}, {"op": "verify", "key": "0/out.safetensors"}, {"op": "analyze", "state": state()}, {"op": "restore", "thrown": "x"},
    ]  # fmt: skip
    shown = [{"op": name, **(example(operation.request) or {})} for name, operation in OPERATIONS.items()]
    known = set(OPERATIONS)
    return [one for one in [*own, *shown] if one["op"] in known]


class Requests(Campaign):
    """What the page may ask of its server side."""

    name = "requests"
    aim = 10_000
    share = 1.5
    # inputs after which the folder is as it was at first
    round = 250

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._template, self._base = folder / "template", folder / "base"
        furnish(self._template)
        desk = desk_at(self._template)
        merged(desk, name="out")
        self._entry = desk.history.list()[0].id
        self._seeds = requests(self._entry)
        self._count = 0
        self._renew()

    def _renew(self) -> None:
        shutil.rmtree(self._base, ignore_errors=True)
        shutil.copytree(self._template, self._base)
        self._desk = desk_at(self._base)

    def make(self, number: int, rng: random.Random) -> Inputs:
        seeds = self._seeds
        request = rng.choice(seeds)
        if request["op"] in HEAVY and rng.random() < 0.7:
            request = rng.choice(seeds)
        data = changed(request, rng, seeds)
        if isinstance(data, dict) and rng.random() < 0.9:
            data["op"] = request["op"]
        return {"request.json": written(data, rng)}

    def attempt(self, inputs: Inputs) -> str:
        self._count += 1
        if self._count % self.round == 0:
            self._renew()
        text = inputs["request.json"].decode("utf-8", "surrogateescape")
        token = getattr(self._desk, "token", None)
        if token is not None and text.startswith("{"):
            text = f'{{"token": "{token}",{text[1:]}' if text[1:].strip(" \n}") else text
        said = self._desk.handle(text)
        reply = browser_takes(said)
        if reply.get("job") and reply.get("what") and reply.get("state") in ("waiting", "running"):
            reply = ended(self._desk, reply)
            browser_takes(
                self._desk.handle(json.dumps({"op": "job", "job": reply.get("job"), "token": token}))
            )
        return said_of(reply)


def browser_takes(said: str) -> dict[str, Any]:
    """Return an answer's objects; `Problem` where a browser could not read it."""

    def never(name: str) -> None:
        raise Problem("other", f"an answer holds {name}, which is no JSON")

    try:
        reply = json.loads(said.encode("utf-8").decode("utf-8"), parse_constant=never)
    except (ValueError, RecursionError) as error:
        raise Problem("other", f"an answer is no JSON: {error}") from error
    if not isinstance(reply, dict) or not isinstance(reply.get("ok"), bool):
        raise Problem("other", f"an answer says neither yes nor no: {said[:200]}")
    return reply


def said_of(reply: dict[str, Any]) -> str:
    """Return what an answer came to; `Problem` where its refusal is no sentence."""
    if reply.get("ok") and reply.get("state") != "failed":
        return "answered"
    error = str(reply.get("error") or "")
    sentence(MergeError(error))
    if error.partition(":")[0] in (
        "KeyError",
        "TypeError",
        "AttributeError",
        "ValueError",
        "IndexError",
        "RecursionError",
        "OverflowError",
        "RuntimeError",
    ):
        raise Problem("traceback", error[:300])
    return "refused"


class Rest(Campaign):
    """Bodies of the REST API, on Forge's FastAPI."""

    name = "rest"
    aim = 5000
    world = "gradio4"

    def __init__(self, folder: Path):
        super().__init__(folder)
        try:
            import fastapi
            from fastapi.testclient import TestClient
        except ImportError as error:
            raise NotHere("FastAPI is not in this environment") from error
        shared = types.ModuleType("modules.shared")
        shared.cmd_opts = types.SimpleNamespace(api_auth=None)
        package = types.ModuleType("modules")
        package.shared = shared
        sys.modules.setdefault("modules", package)
        sys.modules.setdefault("modules.shared", shared)
        from lib_merge.webui import rest

        furnish(folder)
        self._desk = desk_at(folder)
        merged(self._desk, name="out")
        app = fastapi.FastAPI()
        rest.add_routes(app, self._desk)
        self._client = TestClient(app)
        self._paths = {
            name: operation.rest.split(" ", 1) for name, operation in OPERATIONS.items() if operation.rest
        }
        self._seeds = [one for one in requests(self._desk.history.list()[0].id) if one["op"] in self._paths]
        self._prefix = rest.PREFIX

    def make(self, number: int, rng: random.Random) -> Inputs:
        request = dict(rng.choice(self._seeds))
        if request["op"] in HEAVY and rng.random() < 0.8:
            request = dict(rng.choice(self._seeds))
        method, path = self._paths[request.pop("op")]
        changes = changed(request, rng, self._seeds)
        path = path.replace("{job}", rng.choice(("1", "²", "-1", "999", "a", "9" * 30, "1.5", "%00")))
        if method == "GET" and isinstance(changes, dict):
            changes = {str(key): value for key, value in changes.items()}
        asked = {
            "method": method,
            "path": path,
            "kind": rng.choice(("application/json",) * 9 + ("text/plain", "", "application/json; charset=x")),
        }
        return {"body.json": written(changes, rng), "asked.json": json.dumps(asked).encode()}

    def attempt(self, inputs: Inputs) -> str:
        asked, body = json.loads(inputs["asked.json"]), inputs["body.json"]
        url, more = f"{self._prefix}{asked['path']}", {}
        if asked["method"] == "GET":
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(body)
                if isinstance(values, dict):
                    more["params"] = {
                        key: str(value)[:2000]
                        for key, value in values.items()
                        if _is_text(key) and _is_text(str(value)[:2000])
                    }
        else:
            more = {"content": body, "headers": {"content-type": asked["kind"]} if asked["kind"] else {}}
        reply = self._client.request(asked["method"], url, **more)
        if reply.status_code >= 500:
            raise Problem("traceback", f"HTTP {reply.status_code}: {reply.text[:300]}")
        if reply.status_code in (200, 422) and reply.text.startswith('{"ok"'):
            said = browser_takes(reply.text)
            if said.get("job") and said.get("state") in ("waiting", "running"):
                said = ended(self._desk, said)
            return said_of(said)
        return f"HTTP {reply.status_code}"


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeError:
        return False
    return True
