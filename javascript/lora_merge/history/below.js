/* Below: what was merged, the presets, and tools for one file. */

import { button, el, select } from "../core/dom.js";
import { numberText, proven, timeText } from "../core/format.js";
import { letterOf } from "../core/letters.js";
import { later } from "../core/timing.js";
import { CompareRecipes } from "./compare.js";
import { drawRecipes } from "./recipes.js";
import { Tools } from "./tools.js";
import { Trash } from "./trash.js";
import { verdictCell } from "./verdicts.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask"
 *     | "catalog"
 *     | "follow"
 *     | "grid"
 *     | "library"
 *     | "open"
 *     | "saved"
 *     | "say"
 *     | "state"
 *     | "verify">
 *   & import("./compare.js").CompareNeeds
 *   & import("./recipes.js").RecipesNeeds
 *   & import("./tools.js").ToolsNeeds
 *   & import("./trash.js").TrashNeeds
 *   & import("./verdicts.js").VerdictNeeds} BelowNeeds
 */

/* of a report on an imported file */
const MOST_LINES = 300;

/* entries of the history that are drawn at a time */
const PAGE = 100;

export class Below {
    /**
     * @param {BelowNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.count = PAGE;
        /** @type {Record<string, HTMLElement>} */
        this.places = {};
        this.panel = el("div", { class: "lm-panel" });
        this.name = "";
    }

    /**
     * The place where one of them is drawn; there is one place, which goes where it is looked at.
     * @param {string} name History, Recipes, Presets or Tools
     */
    place(name) {
        const place = el("div", { class: "lm-place" });
        this.places[name] = place;
        return place;
    }

    show(name) {
        this.name = name;
        if (this.places[name]) this.places[name].append(this.panel);
        this[`draw${name}`]();
    }

    refresh() {
        this[`draw${this.name}`]();
    }

    /* ------------------------------------------------------------ history */

    async drawHistory() {
        const reply = await this.needs.ask("history", { search: this.search || "", count: this.count });
        if (!reply || this.name !== "History") return;
        const typing =
            document.activeElement &&
            document.activeElement.getAttribute("aria-label") === "Search the history";
        const look = later(() => ((this.search = search.value), this.drawHistory()), 250);
        const search = el("input", {
            type: "search",
            placeholder: "Search the history",
            value: this.search || "",
            "aria-label": "Search the history",
            oninput: look,
        });
        const rows = reply.entries.map((entry) => this.entry(entry));
        const merges = `${reply.total} ${reply.total === 1 ? "merge" : "merges"}`;
        const older = () => ((this.count += PAGE), this.drawHistory());
        const keep = this.opened(rows);
        this.panel.replaceChildren(
            el(
                "div",
                { class: "lm-line" },
                search,
                el(
                    "span",
                    { class: "lm-dim", "aria-live": "polite" },
                    rows.length < reply.total ? `the newest ${rows.length} of ${merges}` : merges,
                ),
            ),
            rows.length
                ? el(
                      "table",
                      { class: "lm-table" },
                      el(
                          "thead",
                          {},
                          el(
                              "tr",
                              {},
                              ...["When", "Name", "Sources", "Method", "Proof", "Verdict", ""].map((text) =>
                                  el("th", {}, text),
                              ),
                          ),
                      ),
                      el("tbody", {}, ...rows),
                  )
                : el(
                      "p",
                      { class: "lm-dim" },
                      this.search
                          ? "No merge fits the search."
                          : "Every merge is written down here, with its recipe and its proof.",
                  ),
            rows.length < reply.total ? button("Show older", older, { class: "lm-button lm-small" }) : "",
            (this.compared = this.compared || new CompareRecipes(this.needs)).draw(reply.entries),
            (this.trash = this.trash || new Trash(this.needs, () => this.moved())).drawn(),
        );
        keep();
        if (!typing) return;
        search.focus({ preventScroll: true });
        search.setSelectionRange(search.value.length, search.value.length);
    }

    /* what is open below an entry stays open, with what was typed into it, when the list is drawn anew */
    opened(rows) {
        const active = document.activeElement;
        const found = [...this.panel.querySelectorAll(".lm-detail, .lm-judge")].map((node) => {
            let line = node.previousElementSibling;
            while (line && !line.dataset.entry) line = line.previousElementSibling;
            return [line && line.dataset.entry, node];
        });
        return () => {
            for (const [identity, node] of found) {
                const line = rows.find((row) => row.dataset.entry === identity);
                if (!line) continue;
                line.after(node);
                if (node.contains(active) && active instanceof HTMLElement)
                    active.focus({ preventScroll: true });
            }
        };
    }

    entry(entry) {
        const report = entry.report || {};
        const proof = (report.proof || "")
            .replace("asked = saved", "exact")
            .replace(/^saved exactly |, to .*$/g, "");
        const verdict = verdictCell(this.needs, entry, () => line);
        const line = el(
            "tr",
            { "data-entry": entry.id },
            el("td", {}, timeText(entry.time)),
            el("td", {}, el("bdi", {}, entry.name || entry.id)),
            el(
                "td",
                {},
                ...(entry.sources || []).flatMap((source, index) => [
                    index ? " · " : "",
                    el("bdi", {}, source.name),
                    ` ${numberText(source.ratio)}`,
                ]),
            ),
            el("td", {}, this.needs.catalog.title(entry.method)),
            el(
                "td",
                { title: proven(report) },
                el("div", {}, proof),
                report.choice ? el("small", {}, report.choice) : null,
            ),
            el("td", {}, verdict),
            el(
                "td",
                { class: "lm-line" },
                button("Load", () => this.needs.open({ entry: entry.id, name: entry.name }), {
                    class: "lm-button lm-small",
                    title: "Put its sources and settings into the tab",
                }),
                button("Run again…", () => this.again(entry, line), {
                    class: "lm-button lm-small",
                    title: "Merge it once more, without touching what is set up above",
                }),
                button("Verify", () => this.needs.verify(entry.key), { class: "lm-button lm-small" }),
                entry.based_on
                    ? button("Changes", () => this.changes(entry, line), {
                          class: "lm-button lm-small",
                          title: "What changed from the merge it was developed from",
                      })
                    : null,
                button("Rename", () => this.renameMerge(entry), { class: "lm-button lm-small" }),
                button("✕", () => this.removeMerge(entry), {
                    class: "lm-button lm-small",
                    title: "Into the trash folder",
                    "aria-label": `Delete ${entry.name}`,
                }),
            ),
        );
        return line;
    }

    /* one more line below an entry; the same button takes it away again */
    below(line, what, ...content) {
        for (
            let next = line.nextElementSibling;
            next && /lm-detail|lm-judge/.test(next.className);
            next = line.nextElementSibling
        ) {
            next.remove();
            if (next.dataset.what === what) return null;
        }
        const more = el(
            "tr",
            { class: "lm-detail", "data-what": what },
            el("td", { colspan: 7 }, ...content),
        );
        line.after(more);
        return more;
    }

    async changes(entry, line) {
        const reply = await this.needs.ask("history_diff", { entry: entry.id, other: entry.based_on });
        if (reply)
            this.below(
                line,
                "changes",
                el("b", {}, "Changed from the merge it was developed from"),
                el(
                    "ul",
                    { class: "lm-facts" },
                    ...reply.lines.map((text) => el("li", { class: "lm-info" }, text)),
                ),
            );
    }

    async renameMerge(entry) {
        const to = window.prompt("New name of the LoRA", entry.name);
        if (to && to !== entry.name && (await this.needs.ask("rename", { entry: entry.id, to })))
            this.moved();
    }

    async removeMerge(entry) {
        if (
            window.confirm(`Move ${entry.name} and its history entry into the trash folder?`) &&
            (await this.needs.ask("remove", { entry: entry.id }))
        )
            this.moved();
    }

    async moved() {
        await this.needs.library.refresh(true);
        this.drawHistory();
    }

    again(entry, line) {
        const name = el("input", {
            type: "text",
            value: entry.name,
            "aria-label": "Name to run it under",
            onkeydown: (event) => event.key === "Enter" && run(),
        });
        const run = async () => {
            const same = name.value.trim() === entry.name;
            if (
                same &&
                !window.confirm(
                    `Replace ${entry.name} by a new run? The bytes are the same as long as its sources are.`,
                )
            )
                return;
            const started = await this.needs.ask("again", { entry: entry.id, name: name.value });
            if (!started) return;
            more.remove();
            const result = await this.needs.follow(started, (done) => this.needs.saved(done));
            if (result)
                this.needs.say(
                    result.same_tensors
                        ? `${result.output} holds the same tensors as ${entry.name} did.`
                        : `${result.output} differs from what ${entry.name} was.`,
                    !result.same_tensors,
                );
        };
        const more = this.below(
            line,
            "again",
            el(
                "div",
                { class: "lm-line" },
                el("label", {}, "Name ", name),
                button("Run", run, { class: "lm-button lm-primary" }),
                el(
                    "span",
                    { class: "lm-dim" },
                    "the same name gives the same file again, another name the same tensors",
                ),
            ),
        );
        if (more) name.select();
    }

    /* ------------------------------------------------------------ presets */

    drawRecipes() {
        return drawRecipes(this.needs, this.panel, () => this.name === "Recipes");
    }

    drawPresets() {
        const family = this.needs.library.family() || this.needs.catalog.usual_family;
        const rows = this.needs.grid.rows();
        const name = el("input", {
            type: "text",
            placeholder: "Name",
            maxlength: 80,
            "aria-label": "Name of the preset",
            onkeydown: (event) => event.key === "Enter" && save(),
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
                !window.confirm(`Replace the preset ${name.value.trim()}?`)
            )
                return;
            const weights = Object.fromEntries(
                this.needs.grid.columns.map((block) => [block, this.needs.grid.weight(row, block)]),
            );
            if (
                await this.presets("preset_save", {
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
                        button("Rename", () => this.rename(item.name), { class: "lm-button lm-small" }),
                        button(
                            "Delete",
                            () =>
                                window.confirm(`Delete the preset ${item.name}?`) &&
                                this.presets("preset_delete", { name: item.name }),
                            { class: "lm-button lm-small" },
                        ),
                    ),
                ),
            ),
            own.length ? "" : el("p", { class: "lm-dim" }, "Your own presets will be listed here."),
        );
        if (this.files) this.drawFiles(family);
        else this.findFiles(family, true);
    }

    savePreset(row) {
        this.show("Presets");
        this.panel.querySelector('[aria-label="Row to save"]').value = String(row.id);
        const name = this.panel.querySelector('[aria-label="Name of the preset"]');
        name.scrollIntoView({ block: "nearest" });
        name.focus();
    }

    async presets(op, fields) {
        const reply = await this.needs.ask(op, fields);
        if (!reply) return null;
        this.needs.catalog.presets = reply.presets;
        this.needs.grid.render();
        if (this.name === "Presets") this.drawPresets();
        return reply;
    }

    rename(name) {
        const to = window.prompt("New name", name);
        if (to && to !== name) this.presets("preset_rename", { name, to });
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
        const reply = await this.presets("preset_import", fields);
        if (!reply) return;
        const said = reply.lines.filter((line) => line.outcome !== "skipped");
        const rest = said.slice(MOST_LINES);
        const refused = said.filter((line) => line.outcome === "refused").length;
        this.lines.replaceChildren(
            el(
                "p",
                {},
                `${reply.count} ${reply.count === 1 ? "preset was" : "presets were"} read, ` +
                    `${refused === 1 ? "1 line was" : `${refused} lines were`} refused.`,
            ),
            ...reply.notes.map((note) => el("p", { class: "lm-warn" }, note)),
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
                          `… and ${rest.length} more lines, ` +
                              `${rest.filter((line) => line.outcome === "refused").length} of them refused.`,
                      ),
                  ]
                : []),
        );
    }

    drawTools() {
        this.tools = this.tools || new Tools(this.needs);
        this.panel.replaceChildren(this.tools.box);
    }
}
