/* The presets: saved from a row, imported from other tools, renamed and deleted. */

import { button, el, select } from "../core/dom.js";
import { letterOf } from "../core/letters.js";
import { confirmed, named, onEnter } from "./dialog.js";
import { counted } from "./words.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "catalog" | "grid" | "library" | "say" | "state">
 *   } PresetsNeeds
 */

/* of a report on an imported file */
const MOST_LINES = 300;

export class Presets {
    /**
     * @param {PresetsNeeds} needs what it takes
     * @param {() => boolean} wanted the panel still shows presets when an answer comes
     */
    constructor(needs, wanted) {
        this.needs = needs;
        this.wanted = wanted;
    }

    /** @param {any} panel where they are drawn */
    draw(panel) {
        this.panel = panel;
        const family = this.needs.library.family() || this.needs.catalog.usual_family;
        const rows = this.needs.grid.rows();
        const name = el("input", {
            type: "text",
            placeholder: "Name",
            maxlength: 80,
            "aria-label": "Name of the preset",
            onkeydown: onEnter(() => save()),
        });
        const which = select(
            rows.map((row) => [
                String(row.id),
                `row ${letterOf(this.needs.state.data.sources.indexOf(row))}`,
            ]),
            rows[0] ? String(rows[0].id) : "",
            () => {},
            { "aria-label": "Row to save" },
        );
        const save = async () => {
            const row = rows.find((found) => String(found.id) === which.value);
            if (!row)
                return void this.needs.say(
                    "Pick a LoRA first: a preset is saved from a row's block weights.",
                );
            if (!name.value.trim()) return void name.focus();
            if (
                own.some((item) => item.name.toLowerCase() === name.value.trim().toLowerCase()) &&
                !(await confirmed(`Replace the preset ${name.value.trim()}?`, "Replace"))
            )
                return;
            const weights = Object.fromEntries(
                this.needs.grid.columns.map((block) => [block, this.needs.grid.weight(row, block)]),
            );
            if (
                await this.ask("preset_save", {
                    name: name.value,
                    family,
                    weights,
                    elements: row.elements,
                })
            )
                this.needs.say(`Saved the preset ${name.value}.`);
        };
        const own = Object.values(this.needs.catalog.presets[family] || []).filter((item) => item.own);
        const file = el("input", {
            type: "file",
            accept: ".txt,.tsv,.json,.yaml",
            "aria-label": "Preset file of another tool",
            onchange: () => file.files[0] && this.importFile(file.files[0], family),
        });
        this.lines = el("div", { class: "lm-lines" });
        this.found = el("div", {
            class: "lm-line",
            "aria-label": "Preset files of other extensions",
            role: "group",
        });
        this.panel.replaceChildren(
            el(
                "div",
                { class: "lm-line" },
                el("b", {}, "Save"),
                which,
                "as",
                name,
                button("Save preset", save, { class: "lm-button lm-primary" }),
            ),
            el(
                "div",
                { class: "lm-line" },
                el("b", {}, "Import"),
                file,
                button("Look again in other extensions", () => this.findFiles(family)),
                el(
                    "span",
                    { class: "lm-dim" },
                    "lbwpresets.txt, elempresets.txt, mbwpresets.txt, Inspire presets",
                ),
            ),
            this.found,
            this.lines,
            el(
                "ul",
                { class: "lm-presets" },
                ...own.map((item) =>
                    el(
                        "li",
                        { class: "lm-line" },
                        el("bdi", { class: "lm-grow" }, item.name),
                        button("Rename", () => this.rename(item.name), {
                            class: "lm-button lm-small",
                            "aria-label": `Rename ${item.name}`,
                        }),
                        button(
                            "Delete",
                            async () =>
                                (await confirmed(`Delete the preset ${item.name}?`, "Delete")) &&
                                this.ask("preset_delete", { name: item.name }),
                            { class: "lm-button lm-small", "aria-label": `Delete ${item.name}` },
                        ),
                    ),
                ),
            ),
            own.length ? "" : el("p", { class: "lm-dim" }, "Your own presets will be listed here."),
        );
        if (this.files) this.drawFiles(family);
        else this.findFiles(family, true);
    }

    /**
     * Choose the row that is to be saved, and ask for its name.
     * @param {import("../types.js").Row} row
     */
    choose(row) {
        this.panel.querySelector('[aria-label="Row to save"]').value = String(row.id);
        const name = this.panel.querySelector('[aria-label="Name of the preset"]');
        name.scrollIntoView({ block: "nearest" });
        name.focus();
    }

    async ask(op, fields) {
        const reply = await this.needs.ask(op, fields);
        if (!reply) return null;
        this.needs.catalog.presets = reply.presets;
        this.needs.grid.render();
        if (this.wanted()) this.draw(this.panel);
        return reply;
    }

    async rename(name) {
        const to = await named("Rename the preset", name, "Rename");
        if (to && to !== name) this.ask("preset_rename", { name, to });
    }

    importFile(file, family) {
        if (file.size > 2e6) return this.needs.say("That file is too large to be a list of presets.");
        const reader = new FileReader();
        reader.onload = () => this.imported({ text: reader.result, name: file.name, family });
        return reader.readAsText(file);
    }

    /* looked for by themselves when the panel is first opened; only the button says that there are none */
    async findFiles(family, quiet) {
        const reply = await this.needs.ask("preset_find", {});
        if (!reply) return;
        this.files = reply.found;
        this.drawFiles(family);
        if (!quiet && !reply.found.length)
            this.found.replaceChildren("No preset file was found beside this extension.");
    }

    drawFiles(family) {
        this.found.replaceChildren(
            ...this.files.map((one) =>
                button(`Import ${one.title}`, () => this.imported({ found: one.id, family }), {
                    class: "lm-button lm-small",
                }),
            ),
        );
    }

    async imported(fields) {
        const reply = await this.ask("preset_import", fields);
        if (!reply) return;
        const said = reply.lines.filter((line) => line.outcome !== "skipped");
        const rest = said.slice(MOST_LINES);
        this.lines.replaceChildren(
            el("p", { role: "status" }, reply.said),
            ...reply.notes.map((note) => el("p", { class: "lm-dim" }, note)),
            el(
                "ol",
                { class: "lm-report" },
                ...said
                    .slice(0, MOST_LINES)
                    .map((line) =>
                        el(
                            "li",
                            { value: line.number, class: line.outcome === "refused" ? "lm-bad" : "lm-good" },
                            line.says,
                        ),
                    ),
            ),
            ...(rest.length
                ? [
                      el(
                          "p",
                          { class: "lm-dim" },
                          `… and ${counted(rest.length, "more line")}, of them refused: ` +
                              `${rest.filter((line) => line.outcome === "refused").length}.`,
                      ),
                  ]
                : []),
        );
    }
}
