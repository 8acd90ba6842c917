/* Heat maps whose every number can be reached by mouse and by keyboard. */

import { el } from "../core/dom.js";

/* even steps of lightness, the same to almost everyone; and blue against orange around white */
const SEQUENTIAL = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];

const DIVERGING = ["#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806"];

const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/* black or white, whichever has more contrast (WCAG's relative luminance) */
const ink = (rgb) => {
    const [red, green, blue] = rgb.map((part) =>
        part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
};

const between = (colours, place) => {
    const step = Math.min(1, Math.max(0, place)) * (colours.length - 1);
    const first = Math.min(Math.floor(step), colours.length - 2);
    const [from, to] = [parts(colours[first]), parts(colours[first + 1])];
    return from.map((value, at) => Math.round(value + (to[at] - value) * (step - first)));
};

/** Numbers from low to high in colours. */
export class Scale {
    /**
     * @param {number} low
     * @param {number} high
     * @param {(value: number) => string} write makes what stands in a cell
     * @param {string} [unit] what stands behind it in a sentence
     * @param {boolean} [diverging] two colours around white
     */
    constructor(low, high, write, unit, diverging) {
        this.low = low;
        this.high = high;
        this.write = write;
        this.unit = unit || "";
        this.colours = diverging ? DIVERGING : SEQUENTIAL;
    }

    /** @param {number} value to be shown on this ground, in this ink */
    style(value) {
        const rgb = between(
            this.colours,
            this.high > this.low ? (value - this.low) / (this.high - this.low) : 0,
        );
        return `background:rgb(${rgb.join(",")});color:${ink(rgb)}`;
    }

    key() {
        const text = (value) => `${this.write(value)}${this.unit}`;
        return el(
            "div",
            { class: "lm-key" },
            text(this.low),
            el("span", {
                class: "lm-key-bar",
                style: `background:linear-gradient(90deg,${this.colours.join(",")})`,
            }),
            text(this.high),
        );
    }
}

/**
 * A table of colours.
 * @param {object} what
 * @param {string} what.label
 * @param {{head: Node | string, name: string}[]} what.rows
 * @param {string[]} what.columns
 * @param {(number | null | undefined)[][]} what.values by row and column
 * @param {Scale} what.scale
 * @param {(row: number, column: number) => string} what.tell the sentence of a cell
 * @param {string} [what.hint] what stands below it at first
 * @returns {HTMLElement}
 */
export const heatMap = ({ label, rows, columns, values, scale, tell, hint }) => {
    const readout = el(
        "p",
        { class: "lm-readout", "aria-live": "polite" },
        hint || "Point at a cell, or move with the arrow keys.",
    );
    const cells = rows.map((row, line) =>
        columns.map((column, at) => {
            const value = values[line][at];
            const known = value !== null && value !== undefined;
            const said = known ? tell(line, at) : `${row.name}, ${column}: nothing there`;
            return el(
                "div",
                {
                    class: `lm-heat-cell${known ? "" : " lm-heat-none"}`,
                    role: "gridcell",
                    tabindex: line || at ? -1 : 0,
                    "aria-label": said,
                    title: said,
                    style: known ? scale.style(value) : "",
                },
                known ? scale.write(value) : "",
            );
        }),
    );
    const show = (event) => {
        const cell = event.target.closest(".lm-heat-cell");
        if (cell) readout.textContent = cell.getAttribute("aria-label");
    };
    const move = (event) => {
        const line = cells.findIndex((row) => row.includes(event.target));
        if (line < 0) return;
        const at = cells[line].indexOf(event.target);
        const next = {
            ArrowLeft: [line, at - 1],
            ArrowRight: [line, at + 1],
            ArrowUp: [line - 1, at],
            ArrowDown: [line + 1, at],
            Home: [line, 0],
            End: [line, columns.length - 1],
        }[event.key];
        if (!next || !cells[next[0]] || !cells[next[0]][next[1]]) return;
        event.preventDefault();
        event.stopPropagation();
        event.target.tabIndex = -1;
        cells[next[0]][next[1]].tabIndex = 0;
        cells[next[0]][next[1]].focus();
    };
    const grid = el(
        "div",
        {
            class: `lm-heat${columns.length > 24 ? " lm-heat-many" : ""}`,
            role: "grid",
            "aria-label": label,
            style: `--lm-columns:${columns.length}`,
            onmouseover: show,
            onfocusin: show,
            onkeydown: move,
        },
        el(
            "div",
            { class: "lm-contents", role: "row" },
            el("div", { role: "columnheader" }),
            ...columns.map((name) => el("div", { class: "lm-heat-column", role: "columnheader" }, name)),
        ),
        ...rows.map((row, line) =>
            el(
                "div",
                { class: "lm-contents", role: "row" },
                el("div", { class: "lm-heat-head", role: "rowheader", title: row.name }, row.head),
                ...cells[line],
            ),
        ),
    );
    return el("div", { class: "lm-plot" }, grid, el("div", { class: "lm-line" }, scale.key(), readout));
};
