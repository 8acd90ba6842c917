/* What a comparison came to: its table, the form for a verdict, and both in the history. */

import { button, el, select } from "../core/dom.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "open" | "refreshHistory" | "said">} VerdictNeeds
 */

/**
 * What a comparison measured.
 * @param {any[]} figures of each column
 * @returns {HTMLElement}
 */
export const figureTable = (figures) => {
    const heads = [...new Set(figures.flatMap((one) => one.against.map((other) => other.column)))];
    const cell = (one, head) => {
        const other = one.against.find((found) => found.column === head);
        if (!other) return "–";
        return (
            `${other.difference.toFixed(2)} ± ${other.spread.toFixed(2)}` +
            (other.similarity === null ? "" : ` (${other.similarity.toFixed(3)})`)
        );
    };
    return el(
        "div",
        { class: "lm-scroll" },
        el(
            "table",
            { class: "lm-table" },
            el(
                "caption",
                {},
                "Mean difference of the pictures in grey levels of 255 ± spread over the rows, in " +
                    "brackets structural similarity (1 = the same)",
            ),
            el(
                "thead",
                {},
                el(
                    "tr",
                    {},
                    el("th", {}, "Column"),
                    ...heads.map((head) => el("th", {}, "to ", el("bdi", {}, head))),
                    el("th", {}, "s a picture"),
                    el("th", {}, "LoRAs: s to load"),
                    el("th", {}, "MB"),
                ),
            ),
            el(
                "tbody",
                {},
                ...figures.map((one) =>
                    el(
                        "tr",
                        {},
                        el("th", { scope: "row" }, el("bdi", {}, one.column)),
                        ...heads.map((head) => el("td", {}, cell(one, head))),
                        el("td", {}, one.seconds === null ? "–" : one.seconds.toFixed(1)),
                        el("td", {}, one.load === null ? "–" : one.load.toFixed(2)),
                        el("td", {}, one.bytes ? (one.bytes / 1e6).toFixed(1) : "–"),
                    ),
                ),
            ),
        ),
    );
};

/**
 * The form for a verdict.
 * @param {string[]} sources their names
 * @param {Record<string, any>} value what was said before
 * @param {(verdict: object, notes: string) => Promise<string>} save answers with a sentence
 * @returns {HTMLElement}
 */
export const verdictForm = (sources, value, save) => {
    const verdict = {
        preserved: { ...value.preserved },
        against: value.against || "",
        decision: value.decision || "",
    };
    for (const name of ["artefacts", "consistent"])
        if (typeof value[name] === "boolean") verdict[name] = value[name];
    const yes = (name) =>
        select(
            [
                ["", "–"],
                ["yes", "yes"],
                ["no", "no"],
            ],
            verdict[name] === undefined ? "" : verdict[name] ? "yes" : "no",
            (chosen) => {
                if (chosen) verdict[name] = chosen === "yes";
                else delete verdict[name];
            },
        );
    const notes = el("textarea", { rows: 2, "aria-label": "Notes", value: value.notes || "" });
    const said = el("span", { class: "lm-dim", role: "status" });
    return el(
        "div",
        { class: "lm-fields" },
        ...sources.map((name) =>
            el(
                "label",
                {},
                el("span", {}, "Character of ", el("bdi", {}, name), " preserved?"),
                select(
                    [
                        ["", "–"],
                        ["yes", "yes"],
                        ["partly", "partly"],
                        ["no", "no"],
                    ],
                    verdict.preserved[name] || "",
                    (chosen) => {
                        if (chosen) verdict.preserved[name] = chosen;
                        else delete verdict.preserved[name];
                    },
                ),
            ),
        ),
        el("label", {}, el("span", {}, "New artefacts?"), yes("artefacts")),
        el("label", {}, el("span", {}, "Consistent over prompts and seeds?"), yes("consistent")),
        el(
            "label",
            {},
            el("span", {}, "Against the stack"),
            select(
                [
                    ["", "–"],
                    ["better", "better"],
                    ["equal", "equal"],
                    ["worse", "worse"],
                ],
                verdict.against,
                (chosen) => (verdict.against = chosen),
            ),
        ),
        el(
            "label",
            {},
            el("span", {}, "Decision"),
            select(
                [
                    ["", "–"],
                    ["keep", "keep"],
                    ["discard", "discard"],
                    ["next", "try again"],
                ],
                verdict.decision,
                (chosen) => (verdict.decision = chosen),
            ),
        ),
        el("label", {}, el("span", {}, "Notes"), notes),
        el(
            "div",
            { class: "lm-line" },
            button("Write it down", async () => (said.textContent = await save(verdict, notes.value)), {
                class: "lm-button lm-primary lm-small",
            }),
            said,
        ),
    );
};

/* ------------------------------------------------------------ history and saved recipes */

/**
 * The verdict of an entry; a press opens the form below its line.
 * @param {VerdictNeeds} needs what is taken
 * @param {any} entry of the history
 * @param {() => HTMLElement} after its line
 * @returns {HTMLElement}
 */
export const verdictCell = (needs, entry, after) => {
    const verdict = entry.verdict || {};
    const words = { keep: "keep", discard: "discard", next: "try again", revise: "try again" };
    const text =
        words[verdict.decision] || (entry.status === "revise" ? "to revise" : verdict.against || "Verdict…");
    return button(
        text,
        () => {
            const row = after();
            const open = row.nextElementSibling && row.nextElementSibling.classList.contains("lm-judge");
            if (open) return row.nextElementSibling.remove();
            const place = el("div", {});
            const names = [...new Set((entry.sources || []).map((source) => source.name))];
            place.append(
                verdictForm(names, { ...verdict, notes: entry.notes }, async (given, notes) => {
                    const reply = await needs.ask("verdict", { entry: entry.id, verdict: given, notes });
                    if (!reply) return needs.said();
                    place.closest("tr").remove();
                    if (reply.status === "revise") await needs.open({ entry: entry.id });
                    needs.refreshHistory();
                    return "Written down.";
                }),
            );
            if (entry.grid) gridOf(needs, entry.grid, place);
            return row.after(
                el("tr", { class: "lm-judge" }, el("td", { colspan: row.children.length }, place)),
            );
        },
        {
            class: "lm-button lm-small",
            title: "Your verdict on this merge",
            "aria-label": `Verdict on ${entry.name}: ${text}`,
        },
    );
};

/**
 * Show the comparison that a verdict rests on.
 * @param {Pick<VerdictNeeds, "ask">} needs what is taken
 * @param {string} identity of the comparison
 * @param {HTMLElement} place where it is shown
 */
export const gridOf = async (needs, identity, place) => {
    const reply = await needs.ask("comparison_picture", { comparison: identity });
    const more = reply && (await needs.ask("comparison", { comparison: identity }));
    if (reply)
        place.append(
            el("img", {
                class: "lm-grid-picture",
                src: reply.picture,
                alt: "Grid of the comparison this verdict rests on",
            }),
        );
    if (more && more.found) place.append(figureTable(more.found.figures));
};
