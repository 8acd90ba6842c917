/* What was found, in sentences, and what to do about it. */

import { button, el } from "../core/dom.js";
import { figure, fixed, share } from "../core/format.js";

/** @typedef {import("./view.js").View} View */

/**
 * What was found.
 * @param {View} view
 * @returns {HTMLElement}
 */
export const factList = (view) => {
    const { report } = view;
    const lines = report.pairs
        .slice(0, 6)
        .map((pair) => [
            "info",
            `${view.letter(pair.first)} and ${view.letter(pair.second)}: ${pair.relation}, cosine ` +
                `${fixed(pair.whole.cosine, 3)}`,
        ]);
    if (report.recipe && report.sources.length > 1) {
        const whole = report.recipe.whole;
        lines.push([
            "info",
            "share of the result: " +
                `${whole.shares.map((value, index) => `${view.letter(index)} ${share(value)}`).join(", ")} ` +
                `· sum of ratios ${figure(report.recipe.total)} · ${fixed(whole.cancel, 2)} × as strong ` +
                "as unrelated LoRAs (below 1 they cancel)",
        ]);
        if (whole.growth !== null)
            lines.push([
                whole.growth > 1.5 ? "warn" : "info",
                `strongest direction × ${fixed(whole.growth, 2)} in the worst module (above 1.5 ` +
                    "pictures tend to over-bake)",
            ]);
        if (!report.recipe.direct)
            lines.push([
                "info",
                `estimated from ${report.recipe.seen[0]} of ${report.recipe.seen[1]} modules`,
            ]);
    }
    for (const pruned of (report.recipe && report.recipe.pruning) || [])
        lines.push([
            "info",
            `pruning at ${figure(pruned.threshold)} ` +
                (pruned.field === "prune" ? "of the largest" : "absolute") +
                `${pruned.chosen ? " (set)" : ""} ` +
                `saves ${(pruned.saved / 1e6).toFixed(2)} MB, error ${(100 * pruned.error).toFixed(2)}%`,
        ]);
    for (const source of report.sources) {
        for (const mark of source.marks || []) lines.push(["info", `${source.label}: ${mark.said}`]);
        if (source.broken.length)
            lines.push(["bad", `${source.label}: ${source.broken.length} tensors hold NaN or infinity`]);
        if (source.zero.length)
            lines.push(["info", `${source.label}: ${source.zero.length} tensors are zero`]);
    }
    for (const text of [...report.training.warnings, ...report.notes]) lines.push(["warn", text]);
    return el(
        "ul",
        { class: "lm-said" },
        ...lines.map(([kind, text]) => el("li", { class: `lm-${kind}` }, text)),
    );
};

/**
 * One advice, with the button that carries it out.
 * @param {View} view
 * @param {any} item of the report
 * @returns {HTMLElement}
 */
export const adviceItem = (view, item) => {
    const can = Object.keys(item.apply).length > 0;
    return el(
        "li",
        { class: "lm-warn" },
        el("b", {}, item.title),
        ` ${item.reason} `,
        can
            ? button("Apply", () => view.apply(item), {
                  class: "lm-button lm-small",
                  "aria-label": `Apply: ${item.title}`,
              })
            : null,
    );
};

/**
 * The advice.
 * @param {View} view
 * @returns {HTMLElement}
 */
export const adviceList = (view) => {
    if (!view.report.advice.length)
        return el("p", { class: "lm-calm" }, "✓ Nothing about these LoRAs asks for a change.");
    return el(
        "ul",
        { class: "lm-said lm-advice", "aria-label": "Advice" },
        ...view.report.advice.map((item) => adviceItem(view, item)),
    );
};

/**
 * Starting points: for all of them, and a role's usual ratio for each.
 * @param {View} view
 * @param {(title: string, make: () => Node) => HTMLElement} fold
 * @returns {HTMLElement}
 */
export const startingPoints = (view, fold) => {
    const [each, all] = [[], []];
    for (const item of view.report.starts) (item.id.startsWith("start-role-") ? each : all).push(item);
    const start = (item, text, hint) =>
        el(
            "span",
            { class: "lm-start" },
            button(text, () => view.apply(item), {
                class: "lm-button lm-small",
                title: item.reason,
                "aria-label": `Start: ${text}${hint}`,
            }),
            el(
                "small",
                {},
                item.apply.ratios
                    .filter((ratio) => ratio !== null)
                    .map((ratio) => figure(ratio))
                    .join(" / "),
            ),
        );
    const rows = view.report.sources.map((source, index) =>
        el(
            "div",
            { class: "lm-line" },
            view.chip(index),
            ...each
                .filter((item) => item.numbers.source === index)
                .map((item) => start(item, item.numbers.role, ` for ${view.letter(index)}`)),
        ),
    );
    return fold("Starting points", () =>
        el(
            "div",
            { class: "lm-panel" },
            el("div", { class: "lm-line" }, ...all.map((item) => start(item, item.title.split(":")[0], ""))),
            ...rows,
            el("small", {}, "Where guides begin, not what was measured here."),
        ),
    );
};
