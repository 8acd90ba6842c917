/* Understanding the merge before it is made: it measures by itself when the person pauses, shows what is
   known first, and gives every advice a button. */

import { button, el, keepFocus, select } from "../core/dom.js";
import { later, pause } from "../core/timing.js";
import { adviceItem, adviceList, factList, startingPoints } from "./advice.js";
import { Maps } from "./maps.js";
import { methodsTable, pairsTable, sourcesTable, trainingTable } from "./numbers.js";
import { themed } from "./tables.js";
import { View } from "./view.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "change" | "request" | "say" | "state" |
 *   "working">
 *   & import("./view.js").ViewNeeds} AnalysisNeeds
 */

const KEEP = "lora-merge-analyse-by-itself";

const STAGES = {
    files: "reading the files",
    sources: "comparing the LoRAs",
    pairs: "working out the merge",
    recipe: "comparing methods",
    methods: "drawing advice",
    advice: "",
};

export class Analysis {
    /**
     * @param {AnalysisNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.view = new View(needs);
        this.maps = new Maps(this.view);
        this.turn = 0;
        this.folds = {};
        this.live = el("input", {
            type: "checkbox",
            checked: this.remembered(),
            onchange: () => this.toggle(),
        });
        this.go = button("Analyse", () => this.run(true), { class: "lm-button lm-primary" });
        this.status = el(
            "span",
            { class: "lm-dim", "aria-live": "polite" },
            "who dominates where, what fights, what a rank costs, what to do",
        );
        this.content = el("div", { class: "lm-panel" });
        this.page = el("iframe", { class: "lm-report-page", sandbox: "", title: "The analysis as one page" });
        this.box = el(
            "section",
            { class: "lm-card lm-analysis", "aria-label": "Analysis" },
            el(
                "div",
                { class: "lm-line" },
                el("h3", {}, "Understand it"),
                this.status,
                el("span", { class: "lm-grow" }),
                el(
                    "label",
                    { class: "lm-line", title: "Measure whenever you pause" },
                    this.live,
                    "automatically",
                ),
                this.go,
            ),
            this.content,
        );
        this.soon = later(() => this.live.checked && this.stale() && this.run(false), 900);
        needs.state.listen(() => this.changed());
        this.soon();
    }

    remembered() {
        try {
            return localStorage.getItem(KEEP) !== "no";
        } catch {
            return true;
        }
    }

    toggle() {
        try {
            localStorage.setItem(KEEP, this.live.checked ? "yes" : "no");
        } catch {
            /* private windows keep nothing */
        }
        this.soon();
    }

    /* everything that changes the numbers, and nothing else */
    signature() {
        const { groups, method, knobs, rank, conv_rank, prune, prune_below, precision, seed } =
            this.needs.state.data;
        const rows = this.needs.state
            .used()
            .map((row) => [
                row.id,
                row.key,
                row.ratio,
                row.te,
                row.blocks,
                row.elements,
                row.group,
                row.role,
            ]);
        return rows.length
            ? JSON.stringify([
                  rows,
                  groups,
                  method,
                  knobs[method],
                  rank,
                  conv_rank,
                  prune,
                  prune_below,
                  precision,
                  seed,
              ])
            : "";
    }

    /** what was measured; null where nothing is */
    get report() {
        return this.view.report;
    }

    stale() {
        return this.signature() !== this.measured;
    }

    changed() {
        if (!this.stale()) return;
        if (this.view.report)
            this.status.textContent = this.live.checked
                ? "settings have changed …"
                : "the settings have changed since; analyse again";
        this.soon();
    }

    async run(asked, all) {
        const signature = this.signature();
        const turn = ++this.turn;
        if (this.job) this.needs.request("cancel", { job: this.job }).catch(() => {});
        this.job = null;
        this.measured = signature;
        this.busy = Boolean(signature);
        if (!signature) return this.clear("pick a LoRA to look into");
        this.status.textContent = "measuring …";
        try {
            await this.follow(
                turn,
                await this.needs.request("analyze", { state: this.needs.state.data, all: Boolean(all) }),
            );
        } catch (error) {
            if (turn !== this.turn) return null;
            this.status.textContent = "";
            if (asked) this.needs.say(error.message, true);
            else this.status.textContent = error.message;
        }
        if (turn === this.turn) this.busy = false;
        return null;
    }

    clear(text) {
        this.view.report = null;
        this.content.replaceChildren();
        this.status.textContent = text;
    }

    async follow(turn, started) {
        let now;
        let have = "";
        this.job = started.job;
        do {
            await pause(have ? 120 : 200);
            if (turn !== this.turn) return;
            now = await this.needs.request("analysis", { job: started.job, have });
            if (turn !== this.turn) return;
            if (now.report) {
                have = now.report.stage;
                this.show(now.report, started.job);
            }
            const part = now.total && !have ? `${now.done} of ${now.total} modules` : STAGES[have] || "";
            this.status.textContent =
                now.state === "waiting"
                    ? "waiting for the work before it …"
                    : now.state === "running"
                      ? `measuring … ${part}`
                      : "";
        } while (now.state === "waiting" || now.state === "running");
        this.job = null;
        if (now.state === "failed") throw new Error(now.error);
        if (now.state === "cancelled") this.again();
        else if (this.view.report)
            this.status.textContent = `measured in ${this.view.report.seconds.toFixed(1)} s`;
    }

    /* a merge goes first; afterwards what was put off is made up for */
    async again() {
        this.measured = null;
        this.status.textContent = "put off until the merge is done";
        while (this.needs.working()) await pause(300);
        this.soon();
    }

    show(report, job) {
        this.view.report = report;
        this.view.job = job;
        const complete = report.stage === "advice";
        this.choice = complete ? this.choice : null;
        /* what is below must not jump while parts arrive */
        this.content.style.minHeight = complete ? "" : `${this.content.offsetHeight}px`;
        const parts = [
            factList(this.view),
            complete ? adviceList(this.view) : null,
            complete && report.starts.length
                ? startingPoints(this.view, (title, make) => this.fold(title, make))
                : null,
            report.sources.length ? this.maps.map() : null,
            el(
                "div",
                { class: "lm-pair-of-plots" },
                report.recipe && report.recipe.curve.length ? this.maps.curve() : null,
                report.pairs.length ? pairsTable(this.view) : null,
            ),
            complete ? this.wrong() : null,
            report.sources.length ? this.fold("The LoRAs in numbers", () => sourcesTable(this.view)) : null,
            report.training.rows.some((row) => row.values.some(Boolean))
                ? this.fold("How they were trained", () => trainingTable(this.view))
                : null,
            report.methods.length
                ? this.fold("Other methods on the same LoRAs", () =>
                      methodsTable(this.view, (asked, all) => this.run(asked, all)),
                  )
                : null,
            complete ? this.whole() : null,
        ];
        const inside = this.content.contains(document.activeElement);
        keepFocus(() => this.content.replaceChildren(...parts.filter(Boolean)));
        /* an advice that was carried out takes its button with it; the keyboard stays in the panel */
        if (inside && !this.content.contains(document.activeElement)) this.go.focus({ preventScroll: true });
    }

    fold(title, make) {
        const box = el(
            "details",
            { ontoggle: () => (this.folds[title] = box.open) },
            el("summary", {}, title),
            make(),
        );
        box.open = Boolean(this.folds[title]);
        return box;
    }

    wrong() {
        const { symptoms } = this.view.report;
        const choose = (value) => {
            this.choice = value;
            const found = symptoms.find((item) => item.id === value);
            answer.replaceChildren(
                ...(found
                    ? [
                          el(
                              "ul",
                              { class: "lm-said" },
                              ...found.says.map((text) => el("li", { class: "lm-info" }, text)),
                          ),
                          found.tries.length
                              ? el(
                                    "ul",
                                    { class: "lm-said", "aria-label": "What to try" },
                                    ...found.tries.map((item) => adviceItem(this.view, item)),
                                )
                              : el(
                                    "p",
                                    { class: "lm-dim" },
                                    "Nothing to click: get the file again, or use LoRAs of one base family.",
                                ),
                      ]
                    : []),
            );
        };
        const answer = el("div", { class: "lm-panel", "aria-live": "polite" });
        const pick = select(
            [["", "What is wrong with the pictures? …"], ...symptoms.map((item) => [item.id, item.title])],
            this.choice || "",
            choose,
            { "aria-label": "What is wrong?" },
        );
        choose(this.choice || "");
        return el(
            "div",
            { class: "lm-map" },
            el(
                "div",
                { class: "lm-line" },
                pick,
                el("span", { class: "lm-grow" }),
                button("Save as HTML", () => this.save("html", "text/html"), {
                    title: "One page with every number; nothing is fetched",
                }),
                button("Save as JSON", () => this.save("json", "application/json")),
            ),
            answer,
        );
    }

    whole() {
        const title = "The whole report";
        const fill = async () => {
            if (!box.open || this.page.dataset.job === String(this.view.job)) return;
            this.page.dataset.job = String(this.view.job);
            const reply = await this.needs.ask("analysis_export", { job: this.view.job, form: "page" });
            if (reply) this.page.srcdoc = themed(reply.text);
        };
        /* laid out when it is seen: a frame in a closed fold has no width */
        const box = el(
            "details",
            { ontoggle: () => ((this.folds[title] = box.open), fill()) },
            el("summary", {}, title),
            this.page,
        );
        box.open = Boolean(this.folds[title]);
        return box;
    }

    async save(form, type) {
        const reply = await this.needs.ask("analysis_export", { job: this.view.job, form });
        if (!reply) return;
        const link = el("a", {
            download: `lora-analysis.${form}`,
            href: URL.createObjectURL(new Blob([reply.text], { type })),
        });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }
}
