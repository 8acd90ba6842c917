import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { State, groupNames } from "../../javascript/lora_merge/core/state.js";

const SETTINGS = { template: "{sources}_v{n}", folder: "merged", precision: "fp16", names: "" };
let kept;

beforeEach(() => {
    kept = {};
    globalThis.localStorage = {
        getItem: (key) => kept[key] ?? null,
        setItem: (key, text) => (kept[key] = text),
    };
});

test("a change is kept and can be undone and done again", () => {
    const state = new State(SETTINGS);
    state.once(() => (state.data.sources[0].ratio = 0.8));
    state.add({ key: "0/a.safetensors" });
    assert.equal(new State(SETTINGS).data.sources.length, 3);
    state.undo();
    assert.equal(state.data.sources.length, 2);
    assert.equal(state.data.sources[0].ratio, 0.8);
    state.undo();
    assert.equal(state.data.sources[0].ratio, 0.5);
    state.undo();
    assert.equal(state.data.sources[0].ratio, 0.5);
    state.redo();
    state.redo();
    assert.equal(state.data.sources.length, 3);
    state.redo();
    assert.equal(state.data.sources.length, 3);
});

test("a drag is one step to undo", () => {
    const state = new State(SETTINGS);
    for (const ratio of [0.55, 0.6, 0.65]) {
        state.data.sources[0].ratio = ratio;
        state.changed("value");
    }
    state.undo();
    assert.equal(state.data.sources[0].ratio, 0.5);
});

test("a new change forgets what was undone, and a hundred steps are kept", () => {
    const state = new State(SETTINGS);
    state.once(() => (state.data.seed = 1));
    state.undo();
    state.once(() => (state.data.seed = 2));
    state.redo();
    assert.equal(state.data.seed, 2);
    for (let seed = 3; seed < 200; seed += 1) state.once(() => (state.data.seed = seed));
    assert.equal(state.past.length, 100);
});

test("rows move within the list and listeners are told what changed", () => {
    const state = new State(SETTINGS);
    const told = [];
    state.listen((what) => told.push(what));
    const [first, second] = state.data.sources;
    state.move(first, -1);
    assert.deepEqual(told, []);
    state.move(first, 1);
    assert.deepEqual(state.data.sources, [second, first]);
    state.remove(second);
    assert.deepEqual(state.data.sources, [first]);
    assert.deepEqual(told, ["rows", "rows"]);
});

test("only rows that are on and have a file are used", () => {
    const state = new State(SETTINGS);
    state.replace({
        sources: [state.row(1, { key: "a" }), state.row(2), state.row(3, { key: "b", on: false })],
    });
    assert.deepEqual(
        state.used().map((row) => row.key),
        ["a"],
    );
});

test("what was left as the settings had it follows them", () => {
    const state = new State(SETTINGS);
    state.data.output.folder = "mine";
    state.store();
    const later = new State({ ...SETTINGS, template: "new", folder: "elsewhere", precision: "bf16" });
    assert.equal(later.data.output.template, "new");
    assert.equal(later.data.output.folder, "mine");
    assert.equal(later.data.precision, "bf16");
});

test("what is kept and broken is left alone", () => {
    for (const text of ["{", "null", "[]", '{"version": 2}', '{"version": 1, "sources": 3}']) {
        kept["lora-merge-state-1"] = text;
        assert.equal(new State(SETTINGS).data.sources.length, 2, text);
    }
});

test("names of groups that could be letters become free numbers", () => {
    assert.deepEqual(groupNames(["B", "1", "A", "faces"]), { B: "2", 1: "1", A: "3", faces: "faces" });
});
