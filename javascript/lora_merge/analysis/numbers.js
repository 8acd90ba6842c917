/* Tables of what was measured. */

import { button, el } from "../core/dom.js";
import { figure, fixed, share } from "../core/format.js";
import { numbersTable } from "./tables.js";

/** @typedef {import("./view.js").View} View */

/**
 * How often chance a number is.
 * @param {number} value
 * @param {number} chance 0 where it is not known
 */
export const times = (value, chance) => (chance ? fixed(value / chance, 1) : "–");

/**
 * How each two LoRAs disturb each other.
 * @param {View} view
 * @returns {HTMLElement}
 */
export const pairsTable = (view) => {
    const head = [
        ["Pair"],
        ["What they are"],
        ["Cosine", "0 ± 0.02 for unrelated LoRAs"],
        ["Overlap × chance", "of what they write / of what they read; 1 for unrelated LoRAs"],
        ["Signs differ", "50 % by chance alone, which is no conflict"],
        ["beyond the cosine", "0 for unrelated LoRAs; ± is one standard error"],
        ["Same start", "cosine of the stored down projections; near 0 unless both began from one seed"],
    ];
    const rows = view.report.pairs.map((pair) => {
        const part = pair.whole;
        return [
            el("span", { class: "lm-pair" }, view.chip(pair.first), view.chip(pair.second)),
            el("span", { title: pair.reason }, pair.relation),
            fixed(part.cosine, 3),
            `${times(part.overlap_out, part.chance_out)} / ${times(part.overlap_in, part.chance_in)}`,
            share(part.conflict, 1),
            part.excess === null
                ? "–"
                : `${fixed(100 * part.excess, 1)} ± ${(100 * part.error).toFixed(1)} points`,
            fixed(pair.start, 2),
        ];
    });
    return el(
        "div",
        { class: "lm-map" },
        el("b", {}, "Pairs"),
        numbersTable(head, rows, "Pairs"),
        el(
            "small",
            {},
            "Unrelated LoRAs: cosine 0, overlap 1 × chance, signs differing in 50 %: chance, not conflict.",
        ),
    );
};

/**
 * The LoRAs in numbers.
 * @param {View} view
 * @returns {HTMLElement}
 */
export const sourcesTable = (view) => {
    const head = [
        ["LoRA"],
        ["Norm", "‖ΔW‖, no unit"],
        ["Effective / stable rank"],
        ["Rank for 90 / 95 / 99 / 99.9 %", "of its energy"],
        ["Text encoders", "share of its energy"],
        ["ΔW mean ± std"],
        ["sampled least … most"],
        ["fp16 headroom", "by how much its numbers could grow"],
        ["Merge / it", "‖merge‖ beside ‖ΔW‖ at ratio 1"],
    ];
    const rows = view.report.sources.map((source, index) => {
        const part = source.whole;
        const to = view.report.recipe ? view.report.recipe.whole.to_source[index] : null;
        return [
            el("span", { class: "lm-line" }, view.chip(index), el("bdi", {}, source.label)),
            figure(part.norm),
            `${figure(part.effective_rank, 2)} / ${figure(part.stable_rank, 2)}`,
            Object.entries(part.ranks)
                .sort((one, other) => Number(one[0]) - Number(other[0]))
                .map(([, rank]) => rank)
                .join(" / "),
            share(source.encoder),
            `${figure(part.mean, 2)} ± ${figure(part.std, 2)}`,
            `${figure(part.low, 2)} … ${figure(part.high, 2)}`,
            source.headroom === null
                ? "–"
                : source.headroom > 1000
                  ? "> 1000 ×"
                  : `${figure(source.headroom, 2)} ×`,
            figure(to, 3),
        ];
    });
    return numbersTable(head, rows, "LoRAs in numbers");
};

/**
 * How they were trained.
 * @param {View} view
 * @returns {HTMLElement}
 */
export const trainingTable = (view) => {
    const { rows } = view.report.training;
    const head = [[""], ...view.report.sources.map((source, index) => [view.name(index)])];
    return numbersTable(
        head,
        rows
            .filter((row) => row.values.some(Boolean))
            .map((row) => [
                row.title,
                ...row.values.map((value) =>
                    el("td", { class: row.differs ? "lm-differs" : "" }, el("bdi", {}, value || "–")),
                ),
            ]),
        "Training",
    );
};

/**
 * Other methods on the same LoRAs.
 * @param {View} view
 * @param {(asked: boolean, all: boolean) => any} run measures anew, `all` with the methods that take long
 * @returns {HTMLElement}
 */
export const methodsTable = (view, run) => {
    const head = [
        ["Method"],
        ["Strength / sum"],
        ["Cosine to the sum"],
        ["Of each is in", "retention"],
        ["Others on its inputs", "what the others add to each one's own work"],
        ["Kept as a LoRA", "of the energy"],
        ["Modules", "looked at"],
        [""],
    ];
    const each = (values) => values.map((value) => share(value)).join(" / ");
    const rows = view.report.methods.map((row) => [
        row.chosen ? el("b", {}, row.title) : row.title,
        fixed(row.to_sum, 2),
        fixed(row.cosine, 3),
        each(row.retention),
        each(row.crosstalk),
        share(row.kept),
        String(row.seen),
        row.chosen
            ? "chosen"
            : button("Use", () => view.apply({ title: row.title, apply: { method: row.name } }), {
                  class: "lm-button lm-small",
                  "aria-label": `Use the method ${row.title}`,
              }),
    ]);
    return el(
        "div",
        {},
        numbersTable(head, rows, "Methods"),
        button("Carry out the number-by-number ones, too", () => run(true, true), {
            class: "lm-button lm-small",
            title: "TIES, DARE and their kin: seconds each",
        }),
    );
};
