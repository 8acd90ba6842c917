import assert from "node:assert/strict";
import { test } from "node:test";

import {
    allAt,
    complementOf,
    thousandths,
    tidied,
    weightOf,
} from "../../javascript/lora_merge/blocks/weights.js";
import { encoderRatio, strengthOf, strengthsLine } from "../../javascript/lora_merge/outlook/strength.js";

const BLOCKS = ["BASE", "IN00", "M00", "OTHER"];

test("a block that is not named weighs 1", () => {
    assert.equal(weightOf({ IN00: 0 }, "IN00"), 0);
    assert.equal(weightOf({ IN00: 0 }, "M00"), 1);
    assert.equal(thousandths(0.12349), 0.123);
});

test("complements are taken of every block but the rest, and twice is once", () => {
    const weights = { IN00: 0.3, M00: 0, OTHER: 0.5 };
    const other = complementOf(weights, BLOCKS);
    assert.deepEqual(other, { BASE: 0, IN00: 0.7 });
    assert.deepEqual(complementOf(other, BLOCKS), { IN00: 0.3, M00: 0 });
});

test("all at one value, and 1 is not kept", () => {
    assert.deepEqual(allAt(0, BLOCKS), { BASE: 0, IN00: 0, M00: 0 });
    assert.deepEqual(allAt(1, BLOCKS), {});
    assert.deepEqual(tidied({ BASE: "0.5", IN00: 1, M00: "R", OTHER: 0 }), { BASE: 0.5, OTHER: 0 });
});

test("a text encoder has its own ratio, the one for all, or the row's", () => {
    assert.equal(encoderRatio({ ratio: 0.5, te: null }, 1), 0.5);
    assert.equal(encoderRatio({ ratio: 0.5, te: [0.2] }, 2), 0.2);
    assert.equal(encoderRatio({ ratio: 0.5, te: [0.2, null] }, 2), 0.5);
});

test("strengths are told of two and more, when all are measured", () => {
    const look = { norm: 2, block_energy: { IN00: 1 }, encoder_energy: {} };
    const row = (key, ratio) => ({ key, ratio, te: null, blocks: {}, group: "" });
    const rows = [row("a", 0.9), row("b", 0.1)];
    const data = { sources: rows, groups: {} };
    assert.equal(strengthOf(rows[0], look, -1), 1.8);
    assert.deepEqual(strengthsLine(data, rows.slice(0, 1), { a: look }), { text: "" });
    assert.equal(strengthsLine(data, rows, { a: look }), null);
    assert.equal(
        strengthsLine(data, rows, { a: look, b: look }).text,
        "strength at these ratios: A 90 % · B 10 %; mostly A",
    );
    assert.deepEqual(strengthsLine(data, rows, { a: look, b: { problem: "broken" } }), { text: "" });
});
