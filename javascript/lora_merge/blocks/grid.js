/* Block weights: a row for each source, a column for each block. One tab stop per row; arrows move and
   adjust. */

import { Lists } from "./lists.js";
import { thousandths, weightOf } from "./weights.js";
import { button, el } from "../core/dom.js";
import { numberText } from "../core/format.js";
import { colourOf, letterOf } from "../core/letters.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "library" | "request" | "state" | "weigh">
 *   & import("./lists.js").ListsNeeds} GridNeeds
 */

const STEP = 0.05;

const round = (value) => thousandths(Math.max(-10, Math.min(10, value)));

export class Grid {
    /**
     * @param {GridNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.at = null;
        this.lists = new Lists(needs, this);
        this.note = el("span", { class: "lm-dim lm-reading", "aria-live": "polite" });
        this.table = el("div", {
            class: "lm-grid",
            role: "grid",
            "aria-multiselectable": "true",
            "aria-label": "Block weights",
            "aria-describedby": "lora_merge_grid_help",
        });
        this.help = this.keys();
        this.asked = button("?", () => this.explain(), {
            class: "lm-button lm-small lm-icon",
            "aria-label": "Keys and mouse in the block weights",
            title: "Keys and mouse",
            "aria-expanded": "false",
        });
        this.box = el(
            "section",
            { class: "lm-card", "aria-label": "Block weights" },
            el(
                "div",
                { class: "lm-line lm-still lm-head" },
                el("h3", {}, "Block weights"),
                this.note,
                el("span", { class: "lm-grow" }),
                this.asked,
            ),
            this.help,
            this.table,
            this.lists.box,
        );
        this.table.addEventListener("pointerdown", (event) => this.grab(event));
        this.table.addEventListener("keydown", (event) => this.key(event));
        this.table.addEventListener(
            "dblclick",
            (event) => this.cell(event.target) && this.edit(this.cell(event.target)),
        );
        this.table.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
        needs.state.listen((what) => (what === "rows" ? this.render() : this.update()));
        this.render();
    }

    keys() {
        const key = (keys, does) => [el("dt", {}, keys), el("dd", {}, does)];
        return el(
            "div",
            { class: "lm-help", id: "lora_merge_grid_help", hidden: true },
            el(
                "dl",
                { class: "lm-keys" },
                ...key("drag", "paints, up and down changes"),
                ...key("↑ ↓", "change by 0.05; Page keys by 0.25"),
                ...key("← →", "the next block; Ctrl+↑ ↓ the next row"),
                ...key("Shift", "with a click or an arrow selects"),
                ...key("0 … 9", "or a double click types a number"),
                ...key("Home, End", "0 and 1"),
                ...key("Ctrl+C, Ctrl+V", "copy and paste a row"),
                ...key("Ctrl+Z, Ctrl+Y", "undo, redo: anything in the tab"),
                ...key("Ctrl+Enter", "merges, from anywhere in the tab"),
            ),
            el(
                "p",
                { class: "lm-dim" },
                "The bar below a number is how much of the LoRA sits there. Blocks are layers, not places " +
                    "in the picture: no single file can keep two characters apart in one picture.",
            ),
        );
    }

    explain() {
        this.help.hidden = !this.help.hidden;
        this.asked.setAttribute("aria-expanded", String(!this.help.hidden));
    }

    rows() {
        return this.needs.state.data.sources.filter((row) => row.key && this.needs.library.item(row.key));
    }

    blocks() {
        const family = this.needs.library.family();
        const table = this.needs.catalog.families[family];
        const present = new Set(this.rows().flatMap((row) => this.needs.library.item(row.key).blocks || []));
        if (!table) return [...present];
        // models of several sizes share a table: their grid has the blocks that some source has
        return table.list.length ? table.blocks : table.blocks.filter((block) => present.has(block));
    }

    render() {
        const rows = this.rows();
        const blocks = this.blocks();
        this.cells = [];
        this.columns = blocks;
        this.box.classList.toggle("lm-empty", !rows.length || !blocks.length);
        if (!rows.length || !blocks.length) {
            this.table.replaceChildren();
            this.table.hidden = true;
            this.asked.hidden = true;
            this.help.hidden = true;
            this.note.textContent = rows.length
                ? "shown as soon as the header is read"
                : "shown when a LoRA is picked";
            this.lists.render([]);
            return;
        }
        this.table.hidden = this.asked.hidden = false;
        const wide = blocks.length > 30;
        this.table.style.gridTemplateColumns =
            `auto repeat(${blocks.length}, ` + `minmax(${blocks.length > 24 ? 19 : 21}px, 1fr))`;
        this.table.classList.toggle("lm-wide", wide);
        const head = el(
            "div",
            { role: "row", class: "lm-contents" },
            el("span", { role: "columnheader", class: "lm-corner" }),
            ...blocks.map((block) => this.heading(block)),
        );
        const lines = rows.map((row, line) => {
            const index = this.needs.state.data.sources.indexOf(row);
            const present = new Set(this.needs.library.item(row.key).blocks || blocks);
            const cells = blocks.map((block, column) => {
                const absent = !present.has(block);
                const cell = el("div", {
                    class: `lm-cell${absent ? " lm-absent" : ""}`,
                    role: "gridcell",
                    tabindex: column === 0 ? 0 : -1,
                    "aria-disabled": absent,
                    style: `--lm-colour:${colourOf(index)}`,
                });
                Object.assign(cell, {
                    lmRow: row,
                    lmBlock: block,
                    lmLine: line,
                    lmColumn: column,
                    lmAbsent: absent,
                });
                return cell;
            });
            this.cells.push(cells);
            return el(
                "div",
                { role: "row", class: "lm-contents" },
                el(
                    "span",
                    { role: "rowheader", class: "lm-letter", style: `--lm-colour:${colourOf(index)}` },
                    letterOf(index),
                ),
                ...cells,
            );
        });
        this.table.replaceChildren(head, ...lines);
        this.lists.render(rows);
        this.update();
        this.measure();
    }

    /* IN over 04, so that narrow columns stay readable */
    heading(block) {
        const [, side, number] = /^(.*?)(\d\d)?$/.exec(block);
        return el(
            "span",
            { role: "columnheader", class: "lm-column", title: this.hint(block), "aria-label": block },
            el("span", {}, side),
            el("b", {}, number || ""),
        );
    }

    hint(block) {
        const { hints, families } = this.needs.catalog;
        const family = families[this.needs.library.family()];
        if (family && family.hints[block]) return `${block}: ${family.hints[block]}`;
        return `${block}: ${hints[block] || hints[block.replace(/\d+$/, "")] || "a part of the model"}`;
    }

    weight(row, block) {
        return weightOf(row.blocks, block);
    }

    set(row, block, value) {
        if (value === 1) delete row.blocks[block];
        else row.blocks[block] = value;
    }

    update() {
        if (!this.cells.length) return;
        for (const cells of this.cells) for (const cell of cells) this.paint(cell);
        this.lists.update();
    }

    paint(cell) {
        const value = this.weight(cell.lmRow, cell.lmBlock);
        const looked = this.needs.library.looked[cell.lmRow.key];
        const share = looked && looked.block_energy ? looked.block_energy[cell.lmBlock] || 0 : 0;
        const most = looked && looked.block_energy ? Math.max(...Object.values(looked.block_energy)) : 1;
        cell.textContent = cell.lmAbsent ? "·" : numberText(value).replace(/^(-?)0\./, "$1.");
        cell.style.setProperty("--lm-fill", Math.min(1, Math.abs(value)).toFixed(3));
        cell.style.setProperty("--lm-bar", share && most ? Math.sqrt(share / most).toFixed(3) : 0);
        cell.classList.toggle("lm-negative", value < 0);
        cell.classList.toggle("lm-selected", this.inRange(cell));
        const energy = share ? `, ${(100 * share).toFixed(1)} % of this LoRA` : "";
        const letter = letterOf(this.needs.state.data.sources.indexOf(cell.lmRow));
        cell.setAttribute(
            "aria-label",
            `${letter} ${cell.lmBlock} ` +
                `${cell.lmAbsent ? "not in this LoRA" : `weight ${numberText(value)}${energy}`}`,
        );
        cell.title = `${this.hint(cell.lmBlock)}${cell.lmAbsent ? " (not in this LoRA)" : energy}`;
    }

    async measure() {
        const keys = [...new Set(this.rows().map((row) => row.key))].filter(
            (key) => !this.needs.library.looked[key],
        );
        clearTimeout(this.again);
        this.reading = keys.length > 0;
        this.note.textContent = keys.length ? "reading energies …" : "";
        if (!keys.length) return;
        try {
            const reply = await this.needs.request("look", { keys });
            Object.assign(this.needs.library.looked, reply.found);
            this.update();
            this.needs.weigh();
            this.again = setTimeout(() => this.measure(), reply.reading ? 400 : 0);
        } catch {
            this.reading = false;
            this.note.textContent = "";
        }
    }

    /* ------------------------------------------------------------ selection */

    cell(node) {
        const found = node && node.closest ? node.closest(".lm-cell") : null;
        return found && !found.lmAbsent ? found : null;
    }

    inRange(cell) {
        if (!this.at || !this.range) return false;
        const within = (value, one, other) => value >= Math.min(one, other) && value <= Math.max(one, other);
        return (
            within(cell.lmLine, this.at.line, this.range.line) &&
            within(cell.lmColumn, this.at.column, this.range.column)
        );
    }

    focus(line, column, extend) {
        const cells = this.cells[line];
        const cell = cells && cells[column];
        if (!cell) return;
        if (extend) this.range = { line, column };
        else {
            this.at = { line, column };
            this.range = null;
        }
        for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
        cell.focus();
        this.refreshSelection();
    }

    refreshSelection() {
        for (const cell of this.cells.flat()) {
            const inside = this.inRange(cell);
            cell.classList.toggle("lm-selected", inside);
            cell.setAttribute("aria-selected", String(inside));
        }
    }

    chosen(cell) {
        const found = this.range
            ? this.cells.flat().filter((other) => this.inRange(other) && !other.lmAbsent)
            : [];
        return found.length ? found : [cell];
    }

    change(cells, make, once) {
        const work = () =>
            cells.forEach((cell) =>
                this.set(cell.lmRow, cell.lmBlock, round(make(this.weight(cell.lmRow, cell.lmBlock)))),
            );
        if (once) return this.needs.state.once(work);
        work();
        return this.needs.state.changed("value");
    }

    /* ------------------------------------------------------------ mouse */

    grab(event) {
        const cell = this.cell(event.target);
        if (!cell || event.button !== 0 || cell.querySelector("input")) return;
        event.preventDefault();
        this.focus(cell.lmLine, cell.lmColumn, event.shiftKey && this.at);
        if (event.shiftKey) return;
        const start = { y: event.clientY, value: this.weight(cell.lmRow, cell.lmBlock) };
        let value = start.value;
        let last = cell;
        const move = (moved) => {
            const over = this.cell(document.elementFromPoint(moved.clientX, moved.clientY));
            if (over && over !== last) {
                last = over;
                this.change([over], () => value);
            } else if (last === cell && Math.abs(moved.clientY - start.y) > 3) {
                value = Math.round((start.value - (moved.clientY - start.y) * 0.0125) / STEP) * STEP;
                value = round(Math.max(-2, Math.min(2, value)));
                this.change([cell], () => value);
            }
        };
        const end = () => {
            document.removeEventListener("pointermove", move);
            document.removeEventListener("pointerup", end);
        };
        document.addEventListener("pointermove", move);
        document.addEventListener("pointerup", end);
    }

    wheel(event) {
        const cell = this.cell(event.target);
        if (!cell || cell !== document.activeElement) return;
        event.preventDefault();
        this.change(this.chosen(cell), (value) => value + (event.deltaY < 0 ? STEP : -STEP));
    }

    /* ------------------------------------------------------------ keyboard */

    key(event) {
        const cell = event.target.classList.contains("lm-cell") ? event.target : null;
        if (!cell) return;
        const { lmLine: line, lmColumn: column } = cell;
        const command = event.ctrlKey || event.metaKey;
        /* a selection begins where the focus is, however it came there */
        if (!this.range) this.at = { line, column };
        const adjust = { ArrowUp: STEP, ArrowDown: -STEP, PageUp: 0.25, PageDown: -0.25 }[event.key];
        if (command && event.key.toLowerCase() === "c") this.lists.copy(cell.lmRow);
        else if (command && event.key.toLowerCase() === "v") this.lists.paste(cell.lmRow);
        else if (command && event.key === "ArrowUp") this.focus(line - 1, column, event.shiftKey);
        else if (command && event.key === "ArrowDown") this.focus(line + 1, column, event.shiftKey);
        else if (command) return;
        else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
            const from = event.shiftKey && this.range ? this.range.column : column;
            const to = from + (event.key === "ArrowRight" ? 1 : -1);
            if (to >= 0 && to < this.columns.length) this.focus(line, to, event.shiftKey);
        } else if (adjust && !cell.lmAbsent) this.change(this.chosen(cell), (value) => value + adjust);
        else if (event.key === "Home" && !cell.lmAbsent) this.change(this.chosen(cell), () => 0, true);
        else if (event.key === "End" && !cell.lmAbsent) this.change(this.chosen(cell), () => 1, true);
        else if ((event.key === "Enter" || /^[-.\d]$/.test(event.key)) && !cell.lmAbsent)
            this.edit(cell, event.key === "Enter" ? "" : event.key);
        else return;
        event.preventDefault();
        event.stopPropagation();
    }

    edit(cell, typed) {
        const cells = this.chosen(cell);
        const field = el("input", {
            type: "text",
            inputmode: "decimal",
            class: "lm-cell-edit",
            value: typed || numberText(this.weight(cell.lmRow, cell.lmBlock)),
            "aria-label": cell.getAttribute("aria-label"),
        });
        let over = false;
        const close = (keep) => {
            if (over) return;
            over = true;
            const value = Number.parseFloat(field.value.replace(",", "."));
            field.remove();
            if (keep && Number.isFinite(value)) this.change(cells, () => value, true);
            else this.paint(cell);
            if (keep !== "blur") cell.focus();
        };
        field.addEventListener("keydown", (event) => {
            event.stopPropagation();
            if (event.key === "Enter") close("key");
            else if (event.key === "Escape") close(false);
        });
        field.addEventListener("blur", () => close("blur"));
        cell.replaceChildren(field);
        field.focus();
        if (!typed) field.select();
    }
}
