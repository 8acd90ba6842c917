"use strict";

/* Whole rows of block weights: as a list, by presets, complements, copied from one row to another. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el } = space;
    /* element rules that ask who has a module */
    const SHARED = "shared_only";
    const UNIQUE = "unique_only";
    const round = (value) => Math.round(value * 1000) / 1000;

    class Lists {
        constructor(app, grid) {
            this.app = app;
            this.grid = grid;
            this.clipboard = null;
            this.fields = [];
            this.box = el("div", { class: "lm-lists" });
        }

        letter(row) {
            return space.letter(this.app.state.data.sources.indexOf(row));
        }

        render(rows) {
            this.fields = rows.map((row) => {
                const letter = this.letter(row);
                const field = el("input", { type: "text", class: "lm-list", spellcheck: "false", "aria-label": `Block weights of ${letter} as a list`, title: "A list of 12, 17, 20, 26 or 61 values, a preset's name, or OUT00-OUT05=0.5,M00=1", onchange: () => this.read(row, field) });
                /* filled when it is first used: eight rows with every preset twice would be thousands of elements */
                const choose = space.select([["", "Preset …"]], "", (value) => ((choose.value = ""), this.apply(row, value)), { "aria-label": `Preset for ${letter}` });
                const fill = () => choose.options.length > 1 || space.fill(choose, this.choices(row), "");
                for (const name of ["focus", "pointerenter", "pointerdown"]) choose.addEventListener(name, fill);
                const colour = space.colour(this.app.state.data.sources.indexOf(row));
                return { row, field, line: el("div", { class: "lm-line", style: `--lm-colour:${colour}` }, el("span", { class: "lm-letter", "aria-hidden": "true" }, letter), choose, field) };
            });
            this.box.replaceChildren(...this.fields.map((field) => field.line));
        }

        presets() {
            return this.app.known.presets[this.app.family()] || [];
        }

        choices(row) {
            const presets = this.presets();
            const others = this.grid.rows().filter((other) => other !== row);
            const named = (items, sign) => items.map((item) => [`${sign}${item.name}`, item.hint && !sign ? `${item.name} – ${item.hint}` : item.name]);
            const next = others.length ? this.letter(this.following(row)) : "";
            return [
                ["", "Preset …"],
                { label: "This row", options: [["=1", "all 1"], ["=0", "all 0"], ["=c", "complement (1 − x)"], ["=copy", "copy"], ["=paste", "paste"], ["=save", "save as a preset …"], [`=:NOT ${SHARED}:0`, "only modules that all sources have"], [`=:NOT ${UNIQUE}:0`, "only modules that no other source has"]] },
                { label: "Shipped", options: named(presets.filter((item) => !item.own), "") },
                ...(presets.some((item) => item.own) ? [{ label: "Yours", options: named(presets.filter((item) => item.own), "") }] : []),
                ...(others.length ? [{ label: "Complement of this row (1 − x)", options: others.map((other) => [`>${other.id}`, `to ${this.letter(other)}`]) }, { label: `Preset here, its complement to ${next}`, options: named(presets, "+") }] : []),
            ];
        }

        following(row) {
            const rows = this.grid.rows();
            return rows[(rows.indexOf(row) + 1) % rows.length];
        }

        /* the short list when it says all there is to say, else every block */
        update() {
            const { grid } = this;
            const table = this.app.known.families[this.app.family()];
            const order = table && table.list.length ? table.list : grid.columns;
            for (const { row, field } of this.fields) {
                if (field === document.activeElement) continue;
                const present = this.app.item(row.key).blocks || [];
                const short = grid.columns.every((block) => order.includes(block) || block === "OTHER" || grid.weight(row, block) === 0 || !present.includes(block));
                const shown = short ? order : grid.columns.filter((block) => block !== "OTHER");
                field.value = shown.map((block) => space.number(grid.weight(row, block))).join(",");
            }
        }

        copy(row) {
            this.clipboard = { ...row.blocks };
            this.app.say(`Copied the block weights of ${this.letter(row)}; Ctrl+V in another row pastes them.`);
        }

        paste(row) {
            if (!this.clipboard) return void this.app.say("Nothing is copied yet: Ctrl+C in a row copies it.");
            return this.app.state.once(() => (row.blocks = { ...this.clipboard }));
        }

        apply(row, what) {
            if (!what) return;
            const all = (value) => Object.fromEntries(this.grid.columns.filter((block) => block !== "OTHER" && value !== 1).map((block) => [block, value]));
            if (what === "=copy") return void this.copy(row);
            if (what === "=paste") return void this.paste(row);
            if (what === "=save") return void this.app.below.savePreset(row);
            const { state } = this.app;
            if (what === "=1" || what === "=0") state.once(() => (row.blocks = all(Number(what[1]))));
            else if (what.startsWith("=:")) state.once(() => (row.elements = what.slice(1)), "rows");
            else if (what === "=c") state.once(() => (row.blocks = this.complement(row.blocks)));
            else if (what[0] === ">") {
                const other = this.grid.rows().find((found) => String(found.id) === what.slice(1));
                if (other) state.once(() => (other.blocks = this.complement(row.blocks)));
            } else this.preset(row, what);
        }

        async preset(row, what) {
            const both = what.startsWith("+");
            const preset = this.presets().find((item) => item.name === (both ? what.slice(1) : what));
            if (!preset) return;
            let { weights } = preset;
            /* R, U and X are drawn by the server, once */
            if (Object.values(weights).some((value) => !Number.isFinite(Number(value)))) {
                const reply = await this.app.ask("blocks", { text: preset.name, family: this.app.family() });
                if (!reply) return;
                weights = reply.weights;
            }
            const rules = preset.elements || "";
            const redraw = rules !== (row.elements || "");
            const other = both && this.following(row);
            this.app.state.once(() => {
                row.blocks = this.tidy(weights);
                row.elements = rules;
                if (other) other.blocks = this.complement(row.blocks);
            }, redraw ? "rows" : "value");
            this.app.say(`${preset.name} is set for ${this.letter(row)}${other ? `, its complement for ${this.letter(other)}` : ""}.`);
        }

        complement(weights) {
            const found = {};
            for (const block of this.grid.columns) {
                if (block === "OTHER") continue;
                const value = round(1 - (weights[block] === undefined ? 1 : weights[block]));
                if (value !== 1) found[block] = value;
            }
            return found;
        }

        tidy(weights) {
            const found = {};
            for (const [block, value] of Object.entries(weights)) if (Number.isFinite(Number(value)) && Number(value) !== 1) found[block] = Number(value);
            return found;
        }

        async read(row, field) {
            const reply = await this.app.ask("blocks", { text: field.value, family: this.app.family() });
            if (reply) {
                field.blur();
                this.app.state.once(() => (row.blocks = this.tidy(reply.weights)));
            }
            field.classList.toggle("lm-wrong", !reply);
        }
    }

    space.Lists = Lists;
})();
