/* Whole rows of block weights: as a list, by presets, complements, copied from one row to another. */

import { el, fillSelect, select } from "../core/dom.js";
import { numberText } from "../core/format.js";
import { colourOf, letterOf } from "../core/letters.js";
import { allAt, complementOf, tidied } from "./weights.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask"
 *     | "catalog"
 *     | "library"
 *     | "savePreset"
 *     | "say"
 *     | "state">} ListsNeeds
 */

/* element rules that ask who has a module */
const SHARED = "shared_only";

const UNIQUE = "unique_only";

export class Lists {
    /**
     * @param {ListsNeeds} needs what it takes
     * @param {import("./grid.js").Grid} grid the rows it is about
     */
    constructor(needs, grid) {
        this.needs = needs;
        this.grid = grid;
        this.clipboard = null;
        this.fields = [];
        this.box = el("div", { class: "lm-lists" });
    }

    letter(row) {
        return letterOf(this.needs.state.data.sources.indexOf(row));
    }

    render(rows) {
        this.fields = rows.map((row) => {
            const letter = this.letter(row);
            const field = el("input", {
                type: "text",
                class: "lm-list",
                spellcheck: "false",
                "aria-label": `Block weights of ${letter} as a list`,
                title: "A list of 12, 17, 20, 26 or 61 values, a preset's name, or OUT00-OUT05=0.5,M00=1",
                onchange: () => this.read(row, field),
            });
            /* filled when it is first used: eight rows with every preset twice would be thousands of
               elements */
            const choose = select(
                [["", "Preset …"]],
                "",
                (value) => ((choose.value = ""), this.apply(row, value)),
                { "aria-label": `Preset for ${letter}` },
            );
            const fill = () => choose.options.length > 1 || fillSelect(choose, this.choices(row), "");
            for (const name of ["focus", "pointerenter", "pointerdown"]) choose.addEventListener(name, fill);
            const colour = colourOf(this.needs.state.data.sources.indexOf(row));
            return {
                row,
                field,
                line: el(
                    "div",
                    { class: "lm-line", style: `--lm-colour:${colour}` },
                    el("span", { class: "lm-letter", "aria-hidden": "true" }, letter),
                    choose,
                    field,
                ),
            };
        });
        this.box.replaceChildren(...this.fields.map((field) => field.line));
    }

    presets() {
        return this.needs.catalog.presets[this.needs.library.family()] || [];
    }

    choices(row) {
        const presets = this.presets();
        const others = this.grid.rows().filter((other) => other !== row);
        const named = (items, sign) =>
            items.map((item) => [
                `${sign}${item.name}`,
                item.hint && !sign ? `${item.name} – ${item.hint}` : item.name,
            ]);
        const next = others.length ? this.letter(this.following(row)) : "";
        return [
            ["", "Preset …"],
            {
                label: "This row",
                options: [
                    ["=1", "all 1"],
                    ["=0", "all 0"],
                    ["=c", "complement (1 − x)"],
                    ["=copy", "copy"],
                    ["=paste", "paste"],
                    ["=save", "save as a preset …"],
                    [`=:NOT ${SHARED}:0`, "only modules that all sources have"],
                    [`=:NOT ${UNIQUE}:0`, "only modules that no other source has"],
                ],
            },
            {
                label: "Shipped",
                options: named(
                    presets.filter((item) => !item.own),
                    "",
                ),
            },
            ...(presets.some((item) => item.own)
                ? [
                      {
                          label: "Yours",
                          options: named(
                              presets.filter((item) => item.own),
                              "",
                          ),
                      },
                  ]
                : []),
            ...(others.length
                ? [
                      {
                          label: "Complement of this row (1 − x)",
                          options: others.map((other) => [`>${other.id}`, `to ${this.letter(other)}`]),
                      },
                      { label: `Preset here, its complement to ${next}`, options: named(presets, "+") },
                  ]
                : []),
        ];
    }

    following(row) {
        const rows = this.grid.rows();
        return rows[(rows.indexOf(row) + 1) % rows.length];
    }

    /* the short list when it says all there is to say, else every block */
    update() {
        const { grid } = this;
        const table = this.needs.catalog.families[this.needs.library.family()];
        const order = table && table.list.length ? table.list : grid.columns;
        for (const { row, field } of this.fields) {
            if (field === document.activeElement) continue;
            const present = this.needs.library.item(row.key).blocks || [];
            const short = grid.columns.every(
                (block) =>
                    order.includes(block) ||
                    block === "OTHER" ||
                    grid.weight(row, block) === 0 ||
                    !present.includes(block),
            );
            const shown = short ? order : grid.columns.filter((block) => block !== "OTHER");
            field.value = shown.map((block) => numberText(grid.weight(row, block))).join(",");
        }
    }

    copy(row) {
        this.clipboard = { ...row.blocks };
        this.needs.say(`Copied the block weights of ${this.letter(row)}; Ctrl+V in another row pastes them.`);
    }

    paste(row) {
        if (!this.clipboard) return void this.needs.say("Nothing is copied yet: Ctrl+C in a row copies it.");
        return this.needs.state.once(() => (row.blocks = { ...this.clipboard }));
    }

    apply(row, what) {
        if (!what) return;
        if (what === "=copy") return void this.copy(row);
        if (what === "=paste") return void this.paste(row);
        if (what === "=save") return void this.needs.savePreset(row);
        const { state } = this.needs;
        if (what === "=1" || what === "=0")
            state.once(() => (row.blocks = allAt(Number(what[1]), this.grid.columns)));
        else if (what.startsWith("=:")) state.once(() => (row.elements = what.slice(1)), "rows");
        else if (what === "=c") state.once(() => (row.blocks = complementOf(row.blocks, this.grid.columns)));
        else if (what[0] === ">") {
            const other = this.grid.rows().find((found) => String(found.id) === what.slice(1));
            if (other) state.once(() => (other.blocks = complementOf(row.blocks, this.grid.columns)));
        } else this.preset(row, what);
    }

    async preset(row, what) {
        const both = what.startsWith("+");
        const preset = this.presets().find((item) => item.name === (both ? what.slice(1) : what));
        if (!preset) return;
        let { weights } = preset;
        /* R, U and X are drawn by the server, once */
        if (Object.values(weights).some((value) => !Number.isFinite(Number(value)))) {
            const reply = await this.needs.ask("blocks", {
                text: preset.name,
                family: this.needs.library.family(),
            });
            if (!reply) return;
            weights = reply.weights;
        }
        const rules = preset.elements || "";
        const redraw = rules !== (row.elements || "");
        const other = both && this.following(row);
        this.needs.state.once(
            () => {
                row.blocks = tidied(weights);
                row.elements = rules;
                if (other) other.blocks = complementOf(row.blocks, this.grid.columns);
            },
            redraw ? "rows" : "value",
        );
        this.needs.say(
            `${preset.name} is set for ` +
                `${this.letter(row)}${other ? `, its complement for ${this.letter(other)}` : ""}.`,
        );
    }

    async read(row, field) {
        const reply = await this.needs.ask("blocks", {
            text: field.value,
            family: this.needs.library.family(),
        });
        if (reply) {
            field.blur();
            this.needs.state.once(() => (row.blocks = tidied(reply.weights)));
        }
        field.classList.toggle("lm-wrong", !reply);
    }
}
