import assert from "node:assert/strict";
import { test } from "node:test";

import * as format from "../../javascript/lora_merge/core/format.js";
import { colourOf, letterOf } from "../../javascript/lora_merge/core/letters.js";
import { markText } from "../../javascript/lora_merge/sources/badges.js";
import { groupsOf } from "../../javascript/lora_merge/sources/groups.js";
import { searchText } from "../../javascript/lora_merge/sources/picker.js";

test("letters go on after Z, colours begin again", () => {
    assert.deepEqual([0, 25, 26, 51, 52, 701, 702].map(letterOf), ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]);
    assert.equal(colourOf(8), colourOf(0));
    assert.notEqual(colourOf(1), colourOf(0));
});

test("sizes and numbers", () => {
    assert.deepEqual([950_000, 9_940_000, 37_500_000, 2_345_000_000].map(format.megabytes), [
        "0.9 MB",
        "9.9 MB",
        "38 MB",
        "2.35 GB",
    ]);
    assert.equal(format.numberText(0.1 + 0.2), "0.3");
    assert.equal(format.percentText(0.12345), "12.35 %");
    assert.equal(format.figure(null), "–");
    assert.equal(format.figure(0.0012345), "0.00123");
    assert.equal(format.fixed(-0.0001, 2), "0.00");
    assert.equal(format.fixed(undefined, 2), "–");
    assert.equal(format.share(0.456, 1), "45.6 %");
    assert.equal(format.leftText(0.2), "about 1 s");
    assert.equal(format.leftText(89.5), "about 90 s");
    assert.equal(format.leftText(90), "about 2 min");
});

test("times are local, today's without the date", () => {
    const now = new Date();
    now.setHours(9, 5, 0, 0);
    assert.equal(format.timeText(now.toISOString()), "today 09:05");
    assert.equal(format.timeText("2020-03-04T05:06:07"), "2020-03-04 05:06");
    assert.equal(format.timeText("nonsense"), "");
});

test("marks say how sure they are", () => {
    assert.equal(markText({ sort: "speed", what: "LCM", sure: true }), "speed: LCM");
    assert.equal(markText({ sort: "epoch", what: "3", sure: false }), "perhaps epoch 3");
    assert.equal(markText({ sort: "slider", what: "", sure: true }), "slider");
});

test("four groups are offered, and what a recipe has beyond them", () => {
    assert.deepEqual(groupsOf([{ group: "" }, { group: "faces" }, { group: "2" }]), [
        "1",
        "2",
        "3",
        "4",
        "faces",
    ]);
});

test("a search finds a LoRA by all that is known of it, whatever the case", () => {
    const marks = [{ sort: "speed", what: "LCM", sure: true }];
    const item = { folder: "Styles", name: "Surf_HN", alias: "Wave", family: "Wan", kinds: ["LoRA"], marks };
    assert.equal(
        searchText({ ...item, tags: ["Big WAVE"] }),
        "styles/surf_hn wave wan lora speed: lcm big wave",
    );
    assert.equal(searchText({ name: "A", folder: "", alias: "A", family: "" }), "/a a ");
});
