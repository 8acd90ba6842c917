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

/**
 * A table of numbers.
 * @param {string[][]} head titles, each with what it means
 * @param {any[][]} rows cells, or whole td elements
 * @param {string} label
 * @returns {HTMLElement}
 */
export const numbersTable = (head, rows, label) =>
    el(
        "div",
        { class: "lm-scroll" },
        el(
            "table",
            { class: "lm-numbers", "aria-label": label },
            el(
                "thead",
                {},
                el("tr", {}, ...head.map(([title, why]) => el("th", { scope: "col", title: why }, title))),
            ),
            el(
                "tbody",
                {},
                ...rows.map((row) =>
                    el(
                        "tr",
                        {},
                        ...row.map((cell) =>
                            cell instanceof HTMLElement && cell.tagName === "TD" ? cell : el("td", {}, cell),
                        ),
                    ),
                ),
            ),
        ),
    );
