import assert from "node:assert/strict";
import { test } from "node:test";

import { leave, windowIn } from "../../javascript/lora_merge/core/window.js";
import * as words from "../../javascript/lora_merge/history/words.js";

/* what a browser keeps for one window */
const storage = (kept = {}) => ({
    kept,
    getItem: (key) => kept[key] ?? null,
    setItem: (key, value) => (kept[key] = String(value)),
    removeItem: (key) => delete kept[key],
});

test("one of a thing is no plural", () => {
    assert.equal(words.counted(1, "merge"), "1 merge");
    assert.equal(words.counted(0, "merge"), "0 merges");
    assert.equal(words.counted(2, "entry", "entries"), "2 entries");
});

test("a list says of a proof what it came to", () => {
    assert.equal(words.shortProof("asked = saved to 0.021%"), "exact to 0.021%");
    assert.equal(words.shortProof("saved exactly what rank 8 can hold, to 0.030%"), "what rank 8 can hold");
    assert.equal(words.shortProof(undefined), "");
});

test("a test prompt has the trigger words in their place and the tag behind", () => {
    const merge = { triggers: "inkwash, mira", prompt: "<lora:m:1>" };
    assert.equal(words.promptText("{trigger}, a river", merge), "inkwash, mira, a river, <lora:m:1>");
    assert.equal(words.promptText("{empty}", merge), "<lora:m:1>");
    assert.equal(words.promptText("a teapot", merge), "a teapot, <lora:m:1>");
    assert.equal(words.promptText("{trigger}, face", { triggers: "", prompt: "" }), "face");
});

test("values of a sweep are numbers, switches and names", () => {
    assert.deepEqual(words.valuesOf("0.2, 0.4;1"), [0.2, 0.4, 1]);
    assert.deepEqual(words.valuesOf(" on, Off "), [true, false]);
    assert.deepEqual(words.valuesOf("energy:0.99 8"), ["energy:0.99", 8]);
    assert.deepEqual(words.valuesOf(""), []);
});

test("a sweep over ranks begins below what can come out", () => {
    assert.equal(words.usualRanks(24), "2, 4, 8, 16");
    assert.equal(words.usualRanks(256), "16, 32, 64, 128");
    assert.equal(words.usualRanks(0), "8, 16, 32, 64");
    assert.equal(words.usualRanks(2), "1");
});

test("every step of the validation says what to change", () => {
    for (const step of ["loads", "pictures", "strengths", "prompts", "speed"])
        assert.ok(words.changesFor(step).length > 1, step);
    assert.deepEqual(words.changesFor("another"), []);
});

test("a reload keeps a window's id, a copy of the window gets one of its own", () => {
    const own = storage();
    const id = windowIn(() => own);
    assert.match(id, /^w-[0-9a-f]{24}$/);
    const copy = storage({ ...own.kept });
    assert.notEqual(
        windowIn(() => copy),
        id,
    );
    leave(() => own);
    assert.equal(
        windowIn(() => own),
        id,
    );
    /* the reload is over: what is copied now is a copy again */
    const later = storage({ ...own.kept });
    assert.notEqual(
        windowIn(() => later),
        id,
    );
});

test("a browser that keeps nothing has a window all the same", () => {
    const none = () => {
        throw new Error("denied");
    };
    assert.match(windowIn(none), /^w-/);
    leave(none);
});
