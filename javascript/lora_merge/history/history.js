/* What was merged: found again, loaded, judged, validated, renamed, thrown away. */

import { button, el, find } from "../core/dom.js";
import { later } from "../core/timing.js";
import { addToPrompt } from "../pictures/prompt.js";
import { confirmed, onEnter } from "./dialog.js";
import { entryRow, showState } from "./entry.js";
import { closeMenu } from "./menu.js";
import { recordParts } from "./record.js";
import { Trash } from "./trash.js";
import { Validation } from "./validation.js";
import { counted } from "./words.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask"
 *     | "follow"
 *     | "library"
 *     | "open"
 *     | "recheck"
 *     | "saved"
 *     | "say"
 *     | "verify">
 *   & import("./entry.js").EntryNeeds
 *   & import("./trash.js").TrashNeeds
 *   & import("./validation.js").ValidationNeeds} HistoryNeeds
 */

/* entries that are drawn at a time */
const PAGE = 100;

const HEADS = ["When", "Name", "Sources", "Method", "Proof", "Verdict, validation", ""];

const EMPTY = "Every merge is written down here, with its recipe and its proof. Merge two LoRAs to begin.";

export class History {
    /**
     * @param {HistoryNeeds} needs what it takes
     * @param {object} around
     * @param {(entries: any[], labels: Record<string, string>) => void} around.listed called with what is
     *     shown
     * @param {(entry: string) => void} around.compare shows an entry beside another
     */
    constructor(needs, { listed, compare }) {
        this.needs = needs;
        this.listed = listed;
        this.count = PAGE;
        /* typed into while lists come: it is made once */
        this.search = el("input", {
            type: "search",
            placeholder: "Search the history",
            "aria-label": "Search the history",
            oninput: later(() => this.draw(), 250),
        });
        this.total = el("span", { class: "lm-dim", "aria-live": "polite" });
        this.list = el("div", { class: "lm-panel" });
        this.trash = new Trash(needs, () => this.moved());
        this.box = el(
            "div",
            { class: "lm-panel lm-history" },
            el("div", { class: "lm-line" }, this.search, this.total),
            this.list,
            this.trash.box,
        );
        /** @type {import("./entry.js").EntryActs} */
        this.acts = {
            load: (entry) => this.load(entry),
            use: (entry) => this.use(entry),
            compare: (entry) => compare(entry.id),
            again: (entry, line) => this.again(entry, line),
            verify: (entry) => needs.verify(entry.key),
            validate: (entry, line) => this.validate(entry, line),
            record: (entry, line) => this.record(entry, line),
            changes: (entry, line) => this.changes(entry, line),
            rename: (entry, line) => this.rename(entry, line),
            remove: (entry) => this.remove(entry),
        };
    }

    async draw() {
        const turn = (this.turn = (this.turn || 0) + 1);
        const search = this.search.value.trim();
        const reply = await this.needs.ask("history", { search, count: this.count });
        if (!reply || turn !== this.turn) return;
        const { entries, total } = reply;
        this.listed(entries, reply.labels);
        const rows = entries.map((entry) =>
            entryRow(
                this.needs,
                entry,
                {
                    can: reply.can[entry.id] || [],
                    label: reply.labels[entry.id] || entry.name,
                },
                this.acts,
            ),
        );
        const merges = counted(total, "merge");
        this.total.textContent = rows.length < total ? `the newest ${rows.length} of ${merges}` : merges;
        const older = () => ((this.count += PAGE), this.draw());
        closeMenu();
        const keep = this.opened(rows);
        this.list.replaceChildren(
            rows.length
                ? this.table(rows)
                : el("p", { class: "lm-dim" }, search ? "No merge fits the search." : EMPTY),
            rows.length < total ? button("Show older", older, { class: "lm-button lm-small" }) : "",
        );
        this.trash.drawn();
        keep();
        this.tick(rows, turn);
    }

    /* how far each is validated, which takes a look into what was compared */
    async tick(rows, turn) {
        if (!rows.length) return;
        const entries = rows.map((row) => row.dataset.entry);
        const reply = await this.needs.ask("validations", { entries });
        if (!reply || turn !== this.turn) return;
        for (const row of rows) showState(row, reply.states[row.dataset.entry]);
    }

    table(rows) {
        return el(
            "table",
            { class: "lm-table lm-entries", role: "table", "aria-label": "History" },
            el(
                "thead",
                { role: "rowgroup" },
                el("tr", { role: "row" }, ...HEADS.map((text) => el("th", { role: "columnheader" }, text))),
            ),
            el("tbody", { role: "rowgroup" }, ...rows),
        );
    }

    /* what is open below an entry stays open, with what was typed into it, when the list is drawn anew */
    opened(rows) {
        const active = document.activeElement;
        const at = /** @type {HTMLElement | null} */ (active && active.closest("[data-entry]"));
        const label = at && active.getAttribute("aria-label");
        const text = at && active.textContent;
        const found = [...this.list.querySelectorAll(".lm-detail, .lm-judge")].map((node) => {
            let line = node.previousElementSibling;
            while (line && !line.dataset.entry) line = line.previousElementSibling;
            return [line && line.dataset.entry, node];
        });
        return () => {
            const lineOf = (identity) => rows.find((row) => row.dataset.entry === identity);
            for (const [identity, node] of found) {
                if (!lineOf(identity)) continue;
                lineOf(identity).after(node);
                if (node.contains(active) && active instanceof HTMLElement)
                    active.focus({ preventScroll: true });
            }
            if (!at || active.isConnected || !lineOf(at.dataset.entry)) return;
            const same = [...lineOf(at.dataset.entry).querySelectorAll("button")].find((node) =>
                label ? node.getAttribute("aria-label") === label : node.textContent === text,
            );
            if (same) same.focus({ preventScroll: true });
        };
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
            { class: "lm-detail", role: "row", "data-what": what },
            el("td", { colspan: HEADS.length, role: "cell" }, ...content),
        );
        /* Esc closes it, and the keyboard is back at the entry */
        more.addEventListener("keydown", (event) => {
            if (event.key !== "Escape") return;
            more.remove();
            const back = line.querySelector(".lm-more");
            if (back instanceof HTMLElement) back.focus({ preventScroll: true });
        });
        line.after(more);
        return more;
    }

    /* ------------------------------------------------------------ what its buttons do */

    async load(entry) {
        await this.needs.open({ entry: entry.id, name: entry.name });
        const first = find("#lora_merge_root .lm-row .lm-name");
        if (!first) return;
        first.scrollIntoView({ block: "center" });
        first.focus({ preventScroll: true });
    }

    async use(entry) {
        const card = await this.needs.ask("card", { entry: entry.id, key: entry.key });
        if (!card) return;
        if (!card.prompt) return void this.needs.say(`${entry.name}: ${card.said}`, true);
        const text = card.triggers ? `${card.triggers}, ${card.prompt}` : card.prompt;
        if (!(await addToPrompt(card.prompt, text))) this.needs.say(text);
    }

    async validate(entry, line) {
        const panel = new Validation(this.needs, entry, () => this.draw());
        const more = this.below(line, "validation", panel.box);
        if (!more) return;
        await panel.load();
        const first = more.querySelector("button");
        if (first) first.focus({ preventScroll: true });
        more.scrollIntoView({ block: "nearest" });
    }

    /**
     * Open the validation of an entry, as the card of a saved merge asks for it.
     * @param {string} identity
     */
    async openValidation(identity) {
        this.search.value = "";
        await this.draw();
        const line = [...this.list.querySelectorAll("tr")].find((row) => row.dataset.entry === identity);
        if (!line) return;
        const next = line.nextElementSibling;
        if (next instanceof HTMLElement && next.dataset.what === "validation") next.remove();
        const show = line.querySelector(".lm-plain-state");
        if (show instanceof HTMLElement) show.click();
    }

    async record(entry, line) {
        const parts = await recordParts(this.needs, entry);
        const more = parts && this.below(line, "record", ...parts);
        if (more) more.querySelector("button").focus({ preventScroll: true });
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

    /* a line with one field below an entry; Enter does what its button does */
    asked(line, what, { label, value, yes, hint, work }) {
        const field = el("input", {
            type: "text",
            value,
            "aria-label": label,
            onkeydown: onEnter(() => work(field.value.trim(), () => more.remove())),
        });
        const more = this.below(
            line,
            what,
            el(
                "div",
                { class: "lm-line" },
                el("label", { class: "lm-asked-name" }, "Name ", field),
                button(yes, () => work(field.value.trim(), () => more.remove()), {
                    class: "lm-button lm-primary",
                }),
                el("span", { class: "lm-dim" }, hint),
            ),
        );
        if (more) field.select();
    }

    rename(entry, line) {
        this.asked(line, "rename", {
            label: "New name of the LoRA",
            value: entry.name,
            yes: "Rename",
            hint: "what lies beside the file follows",
            work: async (to, close) => {
                if (!to || to === entry.name) return close();
                if (!(await this.needs.ask("rename", { entry: entry.id, to }))) return undefined;
                close();
                return this.moved();
            },
        });
    }

    async remove(entry) {
        const question = `Move ${entry.name} and its history entry into the trash folder?`;
        if (!(await confirmed(question, "Delete"))) return;
        if (await this.needs.ask("remove", { entry: entry.id })) this.moved();
    }

    /* a file has another name, or none: what was said of it elsewhere is looked at again */
    async moved() {
        await this.needs.library.refresh(true);
        await this.needs.recheck();
        await this.draw();
    }

    again(entry, line) {
        const run = async (name, close) => {
            const question =
                `Replace ${entry.name} by a new run? ` + "The bytes are the same as long as its sources are.";
            if (name === entry.name && !(await confirmed(question, "Replace"))) return;
            const started = await this.needs.ask("again", { entry: entry.id, name });
            if (!started) return;
            close();
            const result = await this.needs.follow(started, (done) => this.needs.saved(done));
            if (result)
                this.needs.say(
                    result.same_tensors
                        ? `${result.output} holds the same tensors as ${entry.name} did.`
                        : `${result.output} differs from what ${entry.name} was.`,
                    !result.same_tensors,
                );
        };
        this.asked(line, "again", {
            label: "Name to run it under",
            value: entry.name,
            yes: "Run",
            hint: "the same name gives the same file again, another name the same tensors",
            work: run,
        });
    }
}
