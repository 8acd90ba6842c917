/* One merge of the history as a row: what it was, how it was judged, and what can be done with it. */

import { button, el, plain } from "../core/dom.js";
import { numberText, proven, timeText } from "../core/format.js";
import { moreButton } from "./menu.js";
import { verdictCell } from "./verdicts.js";
import { VALIDATED, shortProof } from "./words.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog">
 *   & import("./verdicts.js").VerdictNeeds} EntryNeeds
 */

/** What its buttons do; each is given the entry and its row.
 * @typedef {Record<"load" | "use" | "compare" | "again" | "verify" | "validate" | "record" | "changes"
 *     | "rename" | "remove", (entry: any, line: HTMLElement) => any>} EntryActs
 */

/* on a button: the short word and the long one */
const small = (text, work, title) => button(text, work, { class: "lm-button lm-small", title });

const cell = (kind, attributes, ...children) =>
    el("td", { role: "cell", class: `lm-entry-${kind}`, ...attributes }, ...children);

const sourcesCell = (entry) =>
    cell(
        "sources",
        {},
        ...(entry.sources || []).flatMap((source, index) => [
            index ? " · " : "",
            el("bdi", {}, source.name),
            ` ${numberText(source.ratio)}`,
        ]),
    );

/* what stands behind the three dots, the usual first */
const menuOf = (entry, can, acts, line) =>
    [
        { name: "validate", text: "Validate…", title: "Five steps and ten test prompts" },
        { name: "record", text: "Record to copy…", title: "Sources, method, weights, notes, date" },
        {
            name: "changes",
            text: "Changes…",
            title: "What changed from the merge it was developed from",
            need: "changes",
        },
        {
            name: "again",
            text: "Run again…",
            title: "Merge it once more, without touching what is set up",
            need: "again",
        },
        {
            name: "verify",
            text: "Verify",
            title: "Hold the file against its recipe, with freshly read sources",
            need: "verify",
        },
        { name: "rename", text: "Rename…", title: "The file and what lies beside it", need: "rename" },
        { name: "remove", text: "Delete…", title: "Into the trash folder" },
    ]
        .filter(({ need }) => !need || can.includes(need))
        .map(({ name, text, title }) => ({ text, title, work: () => acts[name](entry, line()) }));

/**
 * Show how far the merge of a row is validated.
 * @param {HTMLElement} line
 * @param {string} state
 */
export const showState = (line, state) => {
    const shown = line.querySelector(".lm-plain-state");
    const [mark, words] = VALIDATED[state] || VALIDATED.open;
    if (!(shown instanceof HTMLElement)) return;
    shown.className = `lm-button lm-small lm-plain-state lm-is-${state}`;
    shown.textContent = `${mark} ${words}`;
    shown.setAttribute("aria-label", plain(`Validation of ${shown.dataset.name}: ${words}`));
};

/**
 * The row of an entry.
 * @param {EntryNeeds} needs what is taken
 * @param {any} entry of the history
 * @param {{can: string[], label: string}} known what works on it, and what menus call it
 * @param {EntryActs} acts
 * @returns {HTMLElement}
 */
export const entryRow = (needs, entry, { can, label }, acts) => {
    const report = entry.report || {};
    const own = () => line;
    const name = entry.name || entry.id;
    const line = el(
        "tr",
        { role: "row", "data-entry": entry.id },
        cell("when", {}, timeText(entry.time)),
        cell("name", {}, el("bdi", {}, name), entry.key ? null : el("small", {}, " judged only, not saved")),
        sourcesCell(entry),
        cell("method", {}, needs.catalog.title(entry.method)),
        cell(
            "proof",
            { title: proven(report) },
            el("span", {}, shortProof(report.proof)),
            report.choice ? el("small", {}, ` ${report.choice}`) : null,
        ),
        cell(
            "state",
            {},
            verdictCell(needs, entry, own),
            button("", () => acts.validate(entry, line), { "data-name": name, class: "lm-plain-state" }),
        ),
        cell(
            "acts",
            {},
            small("Load", () => acts.load(entry, line), "Put its sources and settings into the tab"),
            needs.catalog.can_generate && can.includes("use")
                ? small(
                      "Use in txt2img",
                      () => acts.use(entry, line),
                      "Its tag and trigger words into the prompt",
                  )
                : null,
            small("Compare…", () => acts.compare(entry, line), "Its recipe beside another one"),
            moreButton(`More for ${label}`, () => menuOf(entry, can, acts, own)),
        ),
    );
    showState(line, entry.status === "revise" ? "revise" : "open");
    return line;
};
