"""The wire: what dataclasses take and refuse, how they are described, and that no request gives anything but an answer."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_merge.errors import RecipeError
from lib_merge.ui.describe import Schemas, example
from lib_merge.ui.desk import OPERATIONS, Nothing
from lib_merge.ui.jobs import Jobs, Task
from lib_merge.ui.operations import open_desk
from lib_merge.ui.protocol import About, Sort, Stored, dumps, fields_of, read, write
from lib_merge.ui.state import tab_state, to_recipe
from tests import typescript
from tests.factories import write_lora
from tests.schema import fits
from tests.test_tab_server import Host


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Stored):
    """Something inside."""

    size: Annotated[int, About("how large", least=1, most=9)] = 1
    names: Annotated[list[str], About(most=2)] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """Something with everything in it."""

    ratio: Annotated[float, About(example=0.5)]
    on: bool = True
    mode: Literal["auto", "rank"] = "auto"
    colour: Colour = Colour.RED
    te: float | list[float | None] | None = None
    parts: list[Inner] = field(default_factory=list)
    blocks: dict[str, float] = field(default_factory=dict)
    note: Annotated[str | None, About(omit=True, most=5)] = None
    more: Any = None


WHOLE = {
    "ratio": 1,
    "on": False,
    "mode": "rank",
    "colour": "blue",
    "te": [0.5, None],
    "parts": [{"size": 3.0, "names": ["x"]}],
    "blocks": {"IN04": 0.5},
    "note": "hello",
    "more": {"any": [1]},
}


def test_what_is_read_is_typed_and_what_is_written_is_read_again():
    outer = read(Outer, WHOLE)
    assert isinstance(outer.ratio, float)
    assert outer.colour is Colour.BLUE
    assert outer.parts == [Inner(size=3, names=["x"])]
    assert isinstance(outer.parts[0].size, int)
    assert outer.te == [0.5, None]
    assert read(Outer, json.loads(dumps(write(outer)))) == outer
    assert "note" not in write(Outer(ratio=1.0))
    assert read(Outer, {"ratio": 2}) == Outer(ratio=2.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ratio": "abc"}, 'ratio is "abc"; it takes a number.'),
        ({"ratio": True}, "ratio is true; it takes a number."),
        ({"ratio": None}, "ratio is null; it takes a number."),
        ({"ratio": math.nan}, "ratio is NaN; it takes a number."),
        ({"ratio": 10**400}, "ratio is a number of very many digits; it takes a number."),
        ({"on": 1}, "on is 1; it takes true or false."),
        ({"mode": "x" * 99}, f'mode is "{"x" * 40}…"; it takes "auto" or "rank".'),
        ({"mode": ["auto"]}, 'mode is a list of 1; it takes "auto" or "rank".'),
        ({"colour": 3}, 'colour is 3; it takes "red" or "blue".'),
        ({"te": "all"}, 'te is "all"; it takes a number or a list or null.'),
        ({"te": [0.5, {}]}, "te[1] is an object; it takes a number or null."),
        ({"parts": {}}, "parts is an object; it takes a list."),
        ({"parts": [{}, {"size": 10}]}, "parts[1].size is 10; it takes a whole number from 1 to 9."),
        ({"parts": [{"size": 1.5}]}, "parts[0].size is 1.5; it takes a whole number from 1 to 9."),
        ({"parts": [{"names": "xyz"}]}, 'parts[0].names is "xyz"; it takes a list of at most 2 entries.'),
        ({"parts": [{"names": ["a", "b", "c"]}]}, "parts[0].names is a list of 3; it takes a list of at most 2 entries."),
        ({"parts": [{"sise": 1}]}, "there is no field parts[0].sise; did you mean size?"),
        ({"parts": [{"?": 1}]}, 'there is no field parts[0]["?"]; known here: size, names.'),
        ({"blocks": {"IN04": "1"}}, 'blocks.IN04 is "1"; it takes a number.'),
        ({"blocks": {"a b": []}}, 'blocks["a b"] is a list of 0; it takes a number.'),
        ({"note": "too long"}, 'note is "too long"; it takes text of at most 5 characters or null.'),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_in_one_sentence(change, sentence):
    with pytest.raises(RecipeError) as caught:
        read(Outer, {**WHOLE, **change})
    assert str(caught.value) == sentence


def test_what_is_missing_or_no_object_is_said():
    with pytest.raises(RecipeError, match=r"^ratio is missing; it takes a number\.$"):
        read(Outer, {})
    with pytest.raises(RecipeError, match=r"^the request is a list of 0; it takes an object\.$"):
        read(Outer, [])


def test_what_another_version_left_in_a_browser_is_dropped_and_named():
    dropped: list[str] = []
    given = {"ratio": 1, "parts": [{"size": 2, "shade": 3}]}
    assert read(Outer, given, dropped=dropped).parts == [Inner(size=2)]
    assert dropped == ["parts[0].shade"]
    with pytest.raises(RecipeError, match="shade"):
        read(Outer, given)
    with pytest.raises(RecipeError, match="there is no field extra"):  # of a record that no browser keeps
        read(Outer, {"ratio": 1, "extra": 1}, dropped=[])


def test_text_on_the_wire_is_json_for_everybody():
    text = dumps({"a": [math.inf, {"b": math.nan}], "c": "half \ud800 pair", "d": 0.1})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, {"b": None}],
        "c": "half \\ud800 pair",
        "d": 0.1,
    }
    text.encode("utf-8")


# -------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize("version", ["3.0.2", "3.1.0"])
def test_a_schema_allows_what_is_read_and_nothing_else(version):
    schemas = Schemas(version)
    schema = schemas.of(Outer, closed=True)
    assert fits(WHOLE, schema, schemas.components)
    assert fits({"ratio": 1}, schema, schemas.components)
    for change in ({"ratio": "abc"}, {"on": 1}, {"mode": "x"}, {"colour": 3}, {"te": "all"}, {"parts": [{"size": 10}]},
                   {"parts": [{"names": ["a", "b", "c"]}]}, {"parts": [{"sise": 1}]}, {"blocks": {"IN04": "1"}}, {"x": 1}):  # fmt: skip
        assert not fits({**WHOLE, **change}, schema, schemas.components), change
    assert not fits({}, schema, schemas.components)
    assert schemas.components["Inner"]["properties"]["size"]["description"] == "how large"


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_every_operation_is_described_with_an_example_that_it_takes(name):
    one = OPERATIONS[name]
    assert (one.work.__doc__ or "").strip()
    shown = example(one.request)
    read(one.request, shown)
    for version in ("3.0.2", "3.1.0"):
        schemas = Schemas(version)
        assert fits(shown, schemas.of(one.request, closed=True), schemas.components)
        schemas.of(one.reply)


def test_the_types_of_the_javascript_are_up_to_date():
    assert typescript.TYPES.read_text(encoding="utf-8") == typescript.text(), (
        "run `python -m tests.typescript`"
    )


def test_the_page_asks_for_nothing_that_there_is_not():
    scripts = "".join(path.read_text(encoding="utf-8") for path in typescript.TYPES.parent.rglob("*.js"))
    asked = set(re.findall(r"""(?:\.ask|\.request|\.presets|\bask)\(\s*"([a-z_]+)\"""", scripts))
    assert len(asked) > 30
    assert asked <= set(OPERATIONS)


# -------------------------------------------------------------------------------------------- states of 0.1

V01 = Path(__file__).parent / "reference" / "v01"


def test_a_state_of_0_1_is_read_and_its_groups_are_numbered():
    state = tab_state(json.loads((V01 / "saved" / "state.json").read_text(encoding="utf-8")))
    recipe = to_recipe(state, lambda key: V01 / "loras" / key.partition("/")[2])
    assert [source.handle for source in recipe.sources] == ["A", "1"]
    assert recipe.sources[1].name == "group 1"
    assert [leaf.handle for leaf in recipe.leaves()] == ["A", "B", "C"]
    assert recipe.sources[1].recipe.knobs["trim_fraction"] == [0.3, 0.1]


# -------------------------------------------------------------------------------------------- every request


class Still(Jobs):
    """Jobs that never begin: what a request asks for is checked before."""

    def start(self, what, work):
        del work
        task = Task(next(self._number), what)
        self._tasks[task.id] = task
        return task


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("host"))
    for number, name in enumerate(("ink", "mira")):
        write_lora(host.folder / f"{name}.safetensors", seed=number)
    made = dataclasses.replace(open_desk(host), jobs=Still())
    made.library.refresh(wait=True)
    return made


HOSTILE = (
    "\ud800", "0/ink.safetensors", "0/²", "²/x.safetensors", f"0/{'x' * 300}.safetensors", "0/a\0.safetensors", "0/..", "A",
    "../x", "1" * 5000, "ties", "", "{}", "x\ny", "IN01:attn:1e400", "R,U,X", "energy:2", "data:image/png;base64,AAAA",
    '{"format": "lora-merge-recipe", "version": 1, "sources": [{"name": 5, "ratio": "x"}]}', "<lora:ink:nan:lbw=1,2>",
)  # fmt: skip
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(HOSTILE),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
    max_leaves=6,
)
FULL = {
    "sources": [
        {"id": 1, "key": "0/ink.safetensors", "ratio": 0.5, "te": [0.1, None], "blocks": {"IN04": 0.5}, "role": ""},
        {"id": 2, "key": "0/mira.safetensors", "name": "mira", "ratio": 1, "group": "1", "elements": "IN01:attn:0.5"},
    ],
    "groups": {"1": {"method": "ties", "ratio": 0.4, "knobs": {"ties": {"trim_fraction": [0.2]}}}},
    "method": "dare",
    "knobs": {"dare": {"drop_rate": 0.1}},
    "rank": {"mode": "energy", "value": 0.9},
    "output": {"template": "x", "preview": {"like": "0/ink.safetensors"}, "based_on": "000001-0123abcd"},
}  # fmt: skip
MORE = {
    "changes": {"ratios": [1, None], "keep": [0, 1], "te_ratios": [[1, 2], None], "knobs": {"drop_rate": 0.2}}
}


def _whole(one):
    """Return a request of an operation with many of its fields."""
    fields = fields_of(one.request)
    whole = {name: "x" for name, field in fields.items() if field.form.sort is Sort.TEXT}
    whole |= {**example(one.request), **{name: value for name, value in MORE.items() if name in fields}}
    return {**whole, "state": FULL} if "state" in fields else whole


def _places(value, at=()):
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in pairs:
        yield from _places(item, (*at, name))


def _changed(value, at, new):
    if not at:
        return new
    if isinstance(value, dict):
        return {name: _changed(item, at[1:], new) if name == at[0] else item for name, item in value.items()}
    return [_changed(item, at[1:], new) if index == at[0] else item for index, item in enumerate(value)]


FAULT = re.compile(r"^\w*(Error|Exception|Interrupt|Exit): ")
ASKED = [one for one in OPERATIONS.values() if not one.name.startswith("compare_")]  # those need a WebUI


def _refused(desk, request):
    """Return the sentence that a request is refused with, "" where it is answered."""
    asked = {**request, "token": desk.token} if isinstance(request, dict) else request
    reply = json.loads(desk.handle(json.dumps(asked)), parse_constant=pytest.fail)
    json.dumps(reply, ensure_ascii=False).encode("utf-8")
    if reply["ok"]:
        return ""
    assert reply["error"], request
    assert "\n" not in reply["error"], (request, reply)
    assert not FAULT.match(reply["error"]), (request, reply)
    assert len(reply["error"]) <= 801, (request, reply)
    return reply["error"]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_gives_anything_but_an_answer_or_one_sentence(desk, data):
    one = data.draw(st.sampled_from(ASKED))
    whole = _whole(one)
    place = data.draw(st.sampled_from(list(_places(whole))))
    odd = st.sampled_from([10**400, 2**63, math.nan, math.inf])
    request = _changed(whole, place, data.draw(JUNK | odd))
    _refused(desk, {**request, "op": one.name, "id": 1} if isinstance(request, dict) else request)


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.name)
def test_text_that_harms_is_refused_in_one_sentence(desk, one):
    whole = _whole(one)
    texts = [at for at in _places(whole) if isinstance(_at(whole, at), str)]
    for at in texts:
        for text in HOSTILE:
            _refused(desk, {**_changed(whole, at, text), "op": one.name})


def _at(value, at):
    for name in at:
        value = value[name]
    return value


@settings(max_examples=400)
@given(data=st.data())
def test_the_schema_of_a_request_allows_exactly_what_is_read(data):
    one = data.draw(st.sampled_from([one for one in OPERATIONS.values() if one.request is not Nothing]))
    schemas = Schemas(data.draw(st.sampled_from(["3.0.2", "3.1.0"])))
    schema = schemas.of(one.request, closed=True)
    whole = _whole(one)
    place = data.draw(st.sampled_from(list(_places(whole))))
    request = _changed(whole, place, data.draw(JUNK))
    try:
        read(one.request, request)
    except RecipeError as error:
        assert not fits(request, schema, schemas.components), (one.name, request, str(error))
    else:
        assert fits(request, schema, schemas.components), (one.name, request)


def test_a_whole_request_of_every_operation_is_understood(desk):
    for one in ASKED:
        assert not re.search("it takes|no field|missing", _refused(desk, {**_whole(one), "op": one.name})), (
            one.name
        )


def test_a_request_without_fields_refuses_fields(desk):
    assert OPERATIONS["init"].request is Nothing
    assert (
        desk.handle_dict({"op": "init", "extra": 1})["error"] == "there is no field extra; known here: none."
    )


Unused = Union[int, None]  # typing's own spelling is understood, too


@dataclass(frozen=True)
class Old:
    """Spelt as before Python 3.10."""

    count: Unused = None


def test_both_spellings_of_a_union_are_one():
    assert read(Old, {"count": None}) == Old()
    assert read(Old, {"count": 3}) == Old(3)
