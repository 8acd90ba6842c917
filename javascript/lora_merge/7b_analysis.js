"use strict";

/* Understanding the merge before it is made: it measures by itself when the person pauses, shows what is known first, and
   gives every advice a button. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button, figure, fixed, share } = space;
    const KEEP = "lora-merge-analyse-by-itself";
    const STAGES = { files: "reading the files", sources: "comparing the LoRAs", pairs: "working out the merge", recipe: "comparing methods", methods: "drawing advice", advice: "" };
    const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));

    class Analysis extends space.Sections {
        constructor(app) {
            super();
            this.app = app;
            this.kind = "shares";
            this.turn = 0;
            this.folds = {};
            this.live = el("input", { type: "checkbox", checked: this.remembered(), onchange: () => this.toggle() });
            this.go = button("Analyse", () => this.run(true), { class: "lm-button lm-primary" });
            this.status = el("span", { class: "lm-dim", "aria-live": "polite" }, "who dominates where, what fights, what a rank costs, what to do");
            this.content = el("div", { class: "lm-panel" });
            this.page = el("iframe", { class: "lm-report-page", sandbox: "", title: "The analysis as one page" });
            this.box = el("section", { class: "lm-card lm-analysis", "aria-label": "Analysis" },
                el("div", { class: "lm-line" }, el("h3", {}, "Understand it"), this.status, el("span", { class: "lm-grow" }), el("label", { class: "lm-line", title: "Measure whenever you pause" }, this.live, "by itself"), this.go), this.content);
            this.soon = space.later(() => this.live.checked && this.stale() && this.run(false), 900);
            app.state.listen(() => this.changed());
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
            const { groups, method, knobs, rank, conv_rank, prune, prune_below, precision, seed } = this.app.state.data;
            const rows = this.app.state.used().map((row) => [row.id, row.key, row.ratio, row.te, row.blocks, row.elements, row.group, row.role]);
            return rows.length ? JSON.stringify([rows, groups, method, knobs[method], rank, conv_rank, prune, prune_below, precision, seed]) : "";
        }

        stale() {
            return this.signature() !== this.measured;
        }

        changed() {
            if (!this.stale()) return;
            if (this.report) this.status.textContent = this.live.checked ? "settings have changed …" : "the settings have changed since; analyse again";
            this.soon();
        }

        async run(asked, all) {
            const signature = this.signature();
            const turn = ++this.turn;
            if (this.job) space.bridge.ask("cancel", { job: this.job }).catch(() => {});
            this.job = null;
            this.measured = signature;
            this.busy = Boolean(signature);
            if (!signature) return this.clear("pick a LoRA to look into");
            this.status.textContent = "measuring …";
            try {
                await this.follow(turn, await space.bridge.ask("analyze", { state: this.app.state.data, all: Boolean(all) }));
            } catch (error) {
                if (turn !== this.turn) return null;
                this.status.textContent = "";
                if (asked) this.app.say(error.message, true);
                else this.status.textContent = error.message;
            }
            if (turn === this.turn) this.busy = false;
            return null;
        }

        clear(text) {
            this.report = null;
            this.content.replaceChildren();
            this.status.textContent = text;
        }

        async follow(turn, started) {
            let now = started;
            let have = "";
            this.job = started.job;
            do {
                await wait(have ? 120 : 200);
                if (turn !== this.turn) return;
                now = await space.bridge.ask("analysis", { job: started.job, have });
                if (turn !== this.turn) return;
                if (now.report) {
                    have = now.report.stage;
                    this.show(now.report, started.job);
                }
                const part = now.total && !have ? `${now.done} of ${now.total} modules` : STAGES[have] || "";
                this.status.textContent = now.state === "waiting" ? "waiting for the work before it …" : now.state === "running" ? `measuring … ${part}` : "";
            } while (now.state === "waiting" || now.state === "running");
            this.job = null;
            if (now.state === "failed") throw new Error(now.error);
            if (now.state === "cancelled") this.again();
            else if (this.report) this.status.textContent = `measured in ${this.report.seconds.toFixed(1)} s`;
        }

        /* a merge goes first; afterwards what was put off is made up for */
        async again() {
            this.measured = null;
            this.status.textContent = "put off until the merge is done";
            while (this.app.output.job !== null) await wait(300);
            this.soon();
        }

        /* ------------------------------------------------------------ what is shown */

        place(index) {
            const id = this.report.rows[index];
            const found = this.app.state.data.sources.findIndex((row) => row.id === id);
            return found < 0 ? index : found;
        }

        letter(index) {
            return space.letter(this.place(index));
        }

        chip(index) {
            return el("span", { class: "lm-letter", style: `--lm-colour:${space.colour(this.place(index))}` }, this.letter(index));
        }

        name(index) {
            const source = this.report.sources[index];
            return source ? `${this.letter(index)} ${source.label}` : this.letter(index);
        }

        show(report, job) {
            this.report = report;
            this.shownJob = job;
            const complete = report.stage === "advice";
            this.choice = complete ? this.choice : null;
            /* what is below must not jump while parts arrive */
            this.content.style.minHeight = complete ? "" : `${this.content.offsetHeight}px`;
            const parts = [
                this.facts(),
                complete ? this.advice() : null,
                complete && report.starts.length ? this.starts() : null,
                report.sources.length ? this.map() : null,
                el("div", { class: "lm-pair-of-plots" }, report.recipe && report.recipe.curve.length ? this.curve() : null, report.pairs.length ? this.pairs() : null),
                complete ? this.wrong() : null,
                report.sources.length ? this.fold("The LoRAs in numbers", () => this.sources()) : null,
                report.training.rows.some((row) => row.values.some(Boolean)) ? this.fold("How they were trained", () => this.training()) : null,
                report.methods.length ? this.fold("Other methods on the same LoRAs", () => this.methods()) : null,
                complete ? this.whole() : null,
            ];
            const inside = this.content.contains(document.activeElement);
            space.keepFocus(() => this.content.replaceChildren(...parts.filter(Boolean)));
            /* an advice that was carried out takes its button with it; the keyboard stays in the panel */
            if (inside && !this.content.contains(document.activeElement)) this.go.focus({ preventScroll: true });
        }

        fold(title, make) {
            const box = el("details", { ontoggle: () => (this.folds[title] = box.open) }, el("summary", {}, title), make());
            box.open = Boolean(this.folds[title]);
            return box;
        }

        facts() {
            const { report } = this;
            const lines = report.pairs.slice(0, 6).map((pair) => ["info", `${this.letter(pair.first)} and ${this.letter(pair.second)}: ${pair.relation}, cosine ${fixed(pair.whole.cosine, 3)}`]);
            if (report.recipe && report.sources.length > 1) {
                const whole = report.recipe.whole;
                lines.push(["info", `share of the result: ${whole.shares.map((value, index) => `${this.letter(index)} ${share(value)}`).join(", ")} · sum of ratios ${figure(report.recipe.total)} · ${fixed(whole.cancel, 2)} × as strong as unrelated LoRAs (below 1 they cancel)`]);
                if (whole.growth !== null) lines.push([whole.growth > 1.5 ? "warn" : "info", `strongest direction × ${fixed(whole.growth, 2)} in the worst module (above 1.5 pictures tend to over-bake)`]);
                if (!report.recipe.direct) lines.push(["info", `estimated from ${report.recipe.seen[0]} of ${report.recipe.seen[1]} modules`]);
            }
            for (const pruned of (report.recipe && report.recipe.pruning) || []) lines.push(["info", `pruning at ${figure(pruned.threshold)} ${pruned.field === "prune" ? "of the largest" : "absolute"}${pruned.chosen ? " (set)" : ""} saves ${(pruned.saved / 1e6).toFixed(2)} MB, error ${(100 * pruned.error).toFixed(2)}%`]);
            for (const source of report.sources) {
                for (const mark of source.marks || []) lines.push(["info", `${source.label}: ${mark.said}`]);
                if (source.broken.length) lines.push(["bad", `${source.label}: ${source.broken.length} tensors hold NaN or infinity`]);
                if (source.zero.length) lines.push(["info", `${source.label}: ${source.zero.length} tensors are zero`]);
            }
            for (const text of [...report.training.warnings, ...report.notes]) lines.push(["warn", text]);
            return el("ul", { class: "lm-said" }, ...lines.map(([kind, text]) => el("li", { class: `lm-${kind}` }, text)));
        }

        advice() {
            if (!this.report.advice.length) return el("p", { class: "lm-calm" }, "✓ Nothing about these LoRAs asks for a change.");
            return el("ul", { class: "lm-said lm-advice", "aria-label": "Advice" }, ...this.report.advice.map((item) => this.item(item)));
        }

        item(item) {
            const can = Object.keys(item.apply).length > 0;
            return el("li", { class: "lm-warn" }, el("b", {}, item.title), ` ${item.reason} `, can ? button("Apply", () => this.apply(item), { class: "lm-button lm-small", "aria-label": `Apply: ${item.title}` }) : null);
        }

        /* starting points: for all of them, and a role's usual ratio for each */
        starts() {
            const [each, all] = [[], []];
            for (const item of this.report.starts) (item.id.startsWith("start-role-") ? each : all).push(item);
            const start = (item, text, hint) => el("span", { class: "lm-start" }, button(text, () => this.apply(item), { class: "lm-button lm-small", title: item.reason, "aria-label": `Start: ${text}${hint}` }), el("small", {}, item.apply.ratios.filter((ratio) => ratio !== null).map((ratio) => figure(ratio)).join(" / ")));
            const rows = this.report.sources.map((source, index) => el("div", { class: "lm-line" }, this.chip(index), ...each.filter((item) => item.numbers.source === index).map((item) => start(item, item.numbers.role, ` for ${this.letter(index)}`))));
            return this.fold("Starting points", () => el("div", { class: "lm-panel" }, el("div", { class: "lm-line" }, ...all.map((item) => start(item, item.title.split(":")[0], ""))), ...rows, el("small", {}, "Where guides begin, not what was measured here.")));
        }

        async save(form, type) {
            const reply = await this.app.ask("analysis_export", { job: this.shownJob, form });
            if (!reply) return;
            const link = el("a", { download: `lora-analysis.${form}`, href: URL.createObjectURL(new Blob([reply.text], { type })) });
            link.click();
            setTimeout(() => URL.revokeObjectURL(link.href), 10000);
        }

        async apply(item) {
            await this.app.change(item.title, item.apply);
        }
    }

    space.Analysis = Analysis;
})();
