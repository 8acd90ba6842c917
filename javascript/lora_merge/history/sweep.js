/* A sweep: the same merge with one thing changed, several times. It says what it would write, and asks. */

import { button, el, select } from "../core/dom.js";
import { megabytes } from "../core/format.js";
import { letterOf } from "../core/letters.js";
import { later, pause } from "../core/timing.js";
import { openDialog } from "./dialog.js";
import { counted, usualRanks, valuesOf } from "./words.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "afterSave" | "ask" | "catalog" | "held" | "library"
 *     | "request" | "say" | "state">} SweepNeeds
 */

const KINDS = [
    ["balance", "The balance of two"],
    ["ratio", "One ratio"],
    ["total", "The total of all ratios"],
    ["knob", "A setting of the method"],
    ["rank", "The rank"],
];

const USUAL = {
    ratio: "0.2, 0.4, 0.6, 0.8, 1",
    balance: "0.7, 0.6, 0.5, 0.4, 0.3",
    total: "0.6, 0.8, 1, 1.2",
    knob: "",
};

const HINTS = {
    ratio: "the ratios it takes, one file each",
    balance: "the first one's share; their total stays as it is",
    total: "the sum of all ratios; their proportions stay",
    rank: "ranks, or shares as in energy:0.99",
    knob: "empty: from low to high",
};

class SweepDialog {
    /** @param {SweepNeeds} needs what it takes */
    constructor(needs) {
        this.needs = needs;
        const handles = this.handles();
        const one = handles.find(([, held]) => !held) || handles[0];
        const other = handles.find((found) => found !== one) || one;
        const names = handles.map(([name]) => [name, name]);
        const ask = later(() => this.foresee(), 250);
        this.kind = select(KINDS, handles.length > 1 ? "balance" : "ratio", () => this.chosen(), {
            "aria-label": "What changes",
        });
        this.source = select(names, one[0], () => this.foresee(), { "aria-label": "Source" });
        this.other = select(names, other[0], () => this.foresee(), { "aria-label": "Other source" });
        this.knob = select(this.knobs(), (this.knobs()[0] || [""])[0], () => this.foresee(), {
            "aria-label": "Setting",
        });
        this.values = el("input", { type: "text", "aria-label": "Values", oninput: ask });
        this.hint = el("small", {});
        this.said = el("p", { class: "lm-sweep-said", role: "status" });
        this.steps = el("div", { class: "lm-sweep-steps" });
        this.go = button("Save them", () => this.run(), { class: "lm-button lm-primary", disabled: true });
        this.stop = button("Cancel", () => this.end(), {});
        this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress of the sweep" });
        this.bar.hidden = true;
    }

    get state() {
        return this.needs.state.data;
    }

    /* letters of rows and names of groups, each with whether its ratio is to be kept */
    handles() {
        const found = new Map();
        this.state.sources.forEach((row, index) => {
            if (!row.on || !row.key) return;
            const name = row.group || letterOf(index);
            found.set(name, Boolean(found.get(name)) || Boolean(this.needs.held(row)));
        });
        return [...found];
    }

    /* the largest rank that can come out */
    most() {
        const items = this.needs.state.used().map((row) => this.needs.library.item(row.key));
        return items.reduce((sum, item) => sum + (item ? Math.max(...item.rank, 0) : 0), 0);
    }

    knobs() {
        return this.needs.catalog
            .method(this.state.method)
            .knobs.map((knob) => [knob.name, knob.title || knob.name]);
    }

    field(name, text, control) {
        return el("label", { "data-field": name }, el("span", {}, text), control);
    }

    open() {
        this.form = el(
            "div",
            { class: "lm-fields lm-sweep-form" },
            this.field("kind", "What changes", this.kind),
            this.field("source", "Source", this.source),
            this.field("other", "against", this.other),
            this.field("knob", "Setting", this.knob),
            this.field("values", "Values", this.values),
        );
        const { box, close } = openDialog({
            title: "Sweep: one thing changed, several files",
            content: [
                this.form,
                this.hint,
                this.steps,
                this.bar,
                this.said,
                el("div", { class: "lm-line lm-end" }, this.stop, this.go),
            ],
            closed: () => (this.closed = true),
        });
        this.close = close;
        this.box = box;
        this.chosen();
        this.kind.focus();
    }

    chosen() {
        const kind = this.kind.value;
        const shown = { source: ["ratio", "balance"], other: ["balance"], knob: ["knob"] };
        for (const [name, kinds] of Object.entries(shown))
            this.form.querySelector(`[data-field=${name}]`).hidden = !kinds.includes(kind);
        this.values.value = kind === "rank" ? usualRanks(this.most()) : USUAL[kind];
        this.hint.textContent = HINTS[kind];
        this.foresee();
    }

    asked() {
        return {
            state: this.state,
            sweep: {
                kind: this.kind.value,
                source: this.source.value,
                other: this.other.value,
                knob: this.kind.value === "knob" ? this.knob.value : "",
                values: valuesOf(this.values.value),
            },
        };
    }

    /* what it would write; nothing is written yet */
    async foresee() {
        const turn = (this.turn = (this.turn || 0) + 1);
        this.go.disabled = true;
        let plan = null;
        let wrong = "";
        try {
            plan = await this.needs.request("sweep_plan", this.asked());
        } catch (error) {
            wrong = error.message;
        }
        if (turn !== this.turn || this.job) return;
        this.tell(plan ? `${plan.said}. Nothing is written yet.` : wrong, !plan);
        this.steps.replaceChildren(...(plan ? [this.table(plan.steps)] : []));
        this.go.disabled = !plan;
        this.go.textContent = plan ? `Save ${counted(plan.steps.length, "file")}` : "Save them";
    }

    tell(text, bad) {
        this.said.textContent = text;
        this.said.classList.toggle("lm-bad", Boolean(bad));
    }

    table(steps) {
        this.marks = steps.map(() => el("td", { class: "lm-sweep-mark" }, ""));
        const row = (step, at) =>
            el(
                "tr",
                {},
                this.marks[at],
                el("td", {}, step.label),
                el("td", { class: "lm-sweep-name" }, el("bdi", {}, step.name)),
                el("td", {}, `${step.exact ? "" : "at most "}${megabytes(step.bytes)}`),
            );
        return el("table", { class: "lm-table", "aria-label": "Files" }, el("tbody", {}, ...steps.map(row)));
    }

    /* ------------------------------------------------------------ saving them */

    async run() {
        const started = await this.needs.ask("sweep", this.asked());
        if (!started) return;
        this.job = started.job;
        this.form.inert = true;
        this.go.hidden = true;
        this.bar.hidden = false;
        let now = started;
        while (now.state === "waiting" || now.state === "running") {
            this.progress(now);
            await pause(200);
            const reply = await this.needs.ask("job", { job: this.job });
            if (!reply) break;
            now = reply;
        }
        this.ended(now);
    }

    progress(now) {
        const count = this.marks.length;
        const at = Math.min(count - 1, Math.floor(now.share * count + 1e-6));
        this.bar.value = now.share;
        this.marks.forEach((mark, index) => (mark.textContent = index < at ? "✓" : index === at ? "…" : ""));
        this.tell(
            this.stopping
                ? "Stopping after what is being written …"
                : now.state === "waiting"
                  ? "Waiting for the work before it …"
                  : `Saving file ${at + 1} of ${count} …`,
        );
    }

    /* before: the dialog goes; while files are written: no more of them */
    async end() {
        if (!this.job) return this.close();
        this.stopping = true;
        await this.needs.ask("cancel", { job: this.job });
        return undefined;
    }

    ended(now) {
        this.bar.hidden = true;
        const close = button("Close", () => this.close(), { class: "lm-button lm-primary" });
        this.stop.replaceWith(close);
        const { made, failed } = now.result || { made: [], failed: [] };
        const said = made.length ? `${counted(made.length, "file")} saved; the history has them.` : "";
        const wrong = now.state === "failed" ? now.error : failed.join(" ");
        const stopped = now.state === "cancelled" ? "Cancelled; nothing was written." : "";
        this.tell([said, wrong, stopped].filter(Boolean).join(" "), Boolean(wrong));
        const labels = new Set(made.map((one) => one.label));
        [...this.steps.querySelectorAll("tr")].forEach((row, at) => {
            this.marks[at].textContent = labels.has(row.children[1].textContent) ? "✓" : "–";
        });
        if (this.closed) this.needs.say(this.said.textContent, Boolean(wrong));
        else close.focus();
        this.needs.afterSave();
    }
}

/**
 * Ask what is to be swept, say what that writes, and write it.
 * @param {SweepNeeds} needs what is taken
 */
export const openSweep = (needs) => {
    if (!needs.state.used().length) return needs.say("Pick a LoRA first: a sweep merges what is set up.");
    return new SweepDialog(needs).open();
};
