"use strict";

/* Below: what was merged, the presets, and tools for one file. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button } = space;

    class Below {
        constructor(app) {
            this.app = app;
            this.tabs = ["History", "Recipes", "Presets", "Tools"];
            this.list = el("div", { class: "lm-line lm-tabs", role: "tablist" });
            this.panel = el("div", { class: "lm-panel", role: "tabpanel" });
            this.box = el("section", { class: "lm-card", "aria-label": "History, presets, tools" }, this.list, this.panel);
            this.show("History");
        }

        show(name) {
            this.name = name;
            this.list.replaceChildren(...this.tabs.map((tab) => button(tab, () => this.show(tab), { role: "tab", "aria-selected": tab === name, class: `lm-tab${tab === name ? " lm-active" : ""}` })));
            this[`draw${name}`]();
        }

        refresh() {
            this[`draw${this.name}`]();
        }

        /* ------------------------------------------------------------ history */

        async drawHistory() {
            const reply = await this.app.ask("history", { search: this.search || "" });
            if (!reply || this.name !== "History") return;
            const search = el("input", { type: "search", placeholder: "Search the history", value: this.search || "", "aria-label": "Search the history", onchange: () => ((this.search = search.value), this.drawHistory()) });
            const rows = reply.entries.map((entry) => this.entry(entry));
            this.panel.replaceChildren(
                el("div", { class: "lm-line" }, search, el("span", { class: "lm-dim" }, `${reply.entries.length} merges`)),
                rows.length ? el("table", { class: "lm-table" }, el("thead", {}, el("tr", {}, ...["When", "Name", "Sources", "Method", "Proof", "Verdict", ""].map((text) => el("th", {}, text)))), el("tbody", {}, ...rows)) : el("p", { class: "lm-dim" }, "Every merge is written down here, with its recipe."),
                (this.compared = this.compared || new space.CompareRecipes(this.app)).draw(reply.entries),
            );
        }

        entry(entry) {
            const report = entry.report || {};
            const proof = report.relative_error === undefined ? "" : report.energy_kept < 0.995 ? `keeps ${space.percent(report.energy_kept, 1)}` : space.percent(report.relative_error, 3);
            const verdict = space.verdictCell(this.app, entry, () => row);
            const row = el("tr", {},
                el("td", {}, (entry.time || "").slice(0, 16).replace("T", " ")),
                el("td", {}, el("bdi", {}, entry.name || entry.id)),
                el("td", {}, ...(entry.sources || []).flatMap((source, index) => [index ? " · " : "", el("bdi", {}, source.name), ` ${space.number(source.ratio)}`])),
                el("td", {}, this.app.title(entry.method)),
                el("td", {}, proof),
                el("td", {}, verdict),
                el("td", { class: "lm-line" },
                    button("Load", () => this.app.open({ entry: entry.id }), { class: "lm-button lm-small" }),
                    button("Run again", () => this.again(entry), { class: "lm-button lm-small" }),
                    button("Verify", () => this.app.verify(entry.key), { class: "lm-button lm-small" }),
                    entry.based_on ? button("Changes", () => this.changes(entry), { class: "lm-button lm-small", title: "What changed from the merge it was developed from" }) : null,
                    button("Rename", () => this.renameMerge(entry), { class: "lm-button lm-small" }),
                    button("✕", () => this.removeMerge(entry), { class: "lm-button lm-small", "aria-label": `Delete ${entry.name}` })));
            return row;
        }

        async changes(entry) {
            const reply = await this.app.ask("history_diff", { entry: entry.id, other: entry.based_on });
            if (reply) this.app.say(reply.lines.join(" · "));
        }

        async renameMerge(entry) {
            const to = window.prompt("New name of the LoRA", entry.name);
            if (to && to !== entry.name && (await this.app.ask("rename", { entry: entry.id, to }))) this.moved();
        }

        async removeMerge(entry) {
            if (window.confirm(`Move ${entry.name} and its history entry into the trash folder?`) && (await this.app.ask("remove", { entry: entry.id }))) this.moved();
        }

        async moved() {
            await this.app.refreshLibrary(true);
            this.drawHistory();
        }

        async again(entry) {
            if (await this.app.open({ entry: entry.id })) this.app.output.merge();
        }

        /* ------------------------------------------------------------ presets */

        drawPresets() {
            const family = this.app.family() || "SD1";
            const rows = this.app.grid.rows();
            const name = el("input", { type: "text", placeholder: "Name", maxlength: 80, "aria-label": "Name of the preset" });
            const which = space.select(rows.map((row) => [String(row.id), `row ${space.letter(this.app.state.data.sources.indexOf(row))}`]), rows[0] ? String(rows[0].id) : "", () => {}, { "aria-label": "Row to save" });
            const save = async () => {
                const row = rows.find((found) => String(found.id) === which.value);
                if (!row) return;
                const weights = Object.fromEntries(this.app.grid.columns.map((block) => [block, this.app.grid.weight(row, block)]));
                if (await this.presets("preset_save", { name: name.value, family, weights })) this.app.say(`Saved the preset ${name.value}.`);
            };
            const own = Object.values(this.app.known.presets[family] || []).filter((item) => item.own);
            const file = el("input", { type: "file", accept: ".txt,.tsv,.json,.yaml", "aria-label": "Preset file of another tool", onchange: () => file.files[0] && this.importFile(file.files[0], family) });
            this.lines = el("div", { class: "lm-lines" });
            this.panel.replaceChildren(
                el("div", { class: "lm-line" }, el("b", {}, "Save"), which, "as", name, button("Save preset", save, { class: "lm-button lm-primary" })),
                el("div", { class: "lm-line" }, el("b", {}, "Import"), file, button("Look in other extensions", () => this.findFiles(family)), el("span", { class: "lm-dim" }, "lbwpresets.txt, elempresets.txt, mbwpresets.txt, Inspire presets")),
                this.lines,
                el("ul", { class: "lm-presets" }, ...own.map((item) => el("li", { class: "lm-line" }, el("bdi", { class: "lm-grow" }, item.name),
                    button("Rename", () => this.rename(item.name), { class: "lm-button lm-small" }),
                    button("Delete", () => window.confirm(`Delete the preset ${item.name}?`) && this.presets("preset_delete", { name: item.name }), { class: "lm-button lm-small" })))),
                own.length ? null : el("p", { class: "lm-dim" }, "Your own presets will be listed here."),
            );
        }

        async presets(op, fields) {
            const reply = await this.app.ask(op, fields);
            if (!reply) return null;
            this.app.known.presets = reply.presets;
            this.app.grid.render();
            this.drawPresets();
            return reply;
        }

        rename(name) {
            const to = window.prompt("New name", name);
            if (to && to !== name) this.presets("preset_rename", { name, to });
        }

        importFile(file, family) {
            if (file.size > 2e6) return this.app.say("That file is too large to be a list of presets.");
            const reader = new FileReader();
            reader.onload = () => this.imported({ text: reader.result, name: file.name, family });
            return reader.readAsText(file);
        }

        async findFiles(family) {
            const reply = await this.app.ask("preset_find", {});
            if (!reply) return;
            this.lines.replaceChildren(...(reply.found.length ? reply.found.map((found) => button(`Import ${found.title}`, () => this.imported({ found: found.id, family }))) : ["No preset file was found beside this extension."]));
        }

        async imported(fields) {
            const reply = await this.presets("preset_import", fields);
            if (!reply) return;
            this.lines.replaceChildren(
                el("p", {}, `${reply.count} presets were read.`),
                ...reply.notes.map((note) => el("p", { class: "lm-warn" }, note)),
                el("ol", { class: "lm-report" }, ...reply.lines.filter((line) => line.outcome !== "skipped").slice(0, 300).map((line) => el("li", { value: line.number, class: line.outcome === "refused" ? "lm-bad" : "lm-good" }, line.says))),
            );
        }

        /* ------------------------------------------------------------ tools */

        drawTools() {
            const options = [["", "Pick a LoRA …"], ...this.app.items.slice(0, 2000).map((item) => [item.key, item.folder ? `${item.folder}/${item.name}` : item.name])];
            const pick = space.select(options, "", () => {}, { "aria-label": "LoRA for the tools" });
            const out = el("pre", { class: "lm-report", tabindex: 0 });
            const chosen = (work) => () => (pick.value ? work(pick.value) : this.app.say("Pick a LoRA first."));
            this.panel.replaceChildren(
                el("div", { class: "lm-line" }, pick,
                    button("Inspect", chosen(async (key) => {
                        const reply = await this.app.ask("inspect", { key });
                        if (reply) out.textContent = JSON.stringify(reply.found, null, 1);
                    })),
                    button("Resize or bake…", chosen((key) => this.app.single(key)), { title: "One source: choose a rank or block weights above and press Merge" }),
                    button("Open its recipe", chosen((key) => this.app.open({ key })), { title: "Of a LoRA that was merged here" }),
                    button("Verify", chosen((key) => this.app.verify(key)))),
                out,
            );
        }
    }

    space.Below = Below;
})();
