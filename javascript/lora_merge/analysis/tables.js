/* Tables of numbers, and whole reports as pages. */

import { el } from "../core/dom.js";

/**
 * A report page in the theme of the tab around it; on its own it follows the system's.
 * @param {string} html
 */
export const themed = (html) =>
    html.replace(
        '<html lang="en">',
        `<html lang="en" class="${document.querySelector(".dark #lora_merge_root") ? "dark" : "light"}">`,
    );

/* what a column is called stands with each of its numbers where rows are set as lines; while parts of a
   report arrive, a column may have none yet */
/** @type {(cell: any, head: string[]) => HTMLElement} */
const numbersCell = (cell, [title] = [""]) => {
    const found = cell instanceof HTMLElement && cell.tagName === "TD" ? cell : el("td", {}, cell);
    found.setAttribute("role", "cell");
    found.dataset.label = title;
    return found;
};

/* more columns than this are set below each other where the panel is narrow */
const FEW = 5;

/**
 * A table of numbers.
 * @param {string[][]} head titles, each with what it means
 * @param {any[][]} rows cells, or whole td elements
 * @param {string} label
 * @param {boolean} [stacks] its rows become a few lines each where the panel is narrow
 * @returns {HTMLElement}
 */
export const numbersTable = (head, rows, label, stacks = head.length > FEW) =>
    el(
        "div",
        { class: "lm-scroll" },
        el(
            "table",
            { class: `lm-numbers${stacks ? " lm-stacks" : ""}`, "aria-label": label, role: "table" },
            el(
                "thead",
                {},
                el("tr", {}, ...head.map(([title, why]) => el("th", { scope: "col", title: why }, title))),
            ),
            el(
                "tbody",
                {},
                ...rows.map((row) =>
                    el("tr", { role: "row" }, ...row.map((cell, at) => numbersCell(cell, head[at]))),
                ),
            ),
        ),
    );
