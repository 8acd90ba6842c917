"use strict";

/* Understanding the merge before it is made: advice with a button each, and the whole report as a page in a frame. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button } = space;

    class Analysis {
        constructor(app) {
            this.app = app;
            this.go = button("Analyse", () => this.run(), { class: "lm-button lm-primary" });
            this.old = el("span", { class: "lm-dim" }, "who dominates where, what fights, what a rank costs, what to do");
            this.content = el("div", { class: "lm-panel" });
            this.box = el("section", { class: "lm-card", "aria-label": "Analysis" }, el("div", { class: "lm-line" }, el("h3", {}, "Understand it"), this.old, el("span", { class: "lm-grow" }), this.go), this.content);
            app.state.listen(() => this.result && (this.old.textContent = "the settings have changed since; analyse again"));
        }

        async run() {
            if (this.app.output.job !== null) return;
            const reply = await this.app.ask("analyze", { state: this.app.state.data });
            if (!reply) return;
            this.go.disabled = true;
            this.old.textContent = "measuring …";
            const result = await this.app.output.follow(reply, () => {});
            this.go.disabled = false;
            this.old.textContent = "";
            if (result) this.show(result);
        }

        show(result) {
            this.result = result;
            const advice = result.advice.map((item) => this.item(item));
            const symptoms = space.select([["", "What is wrong with the pictures? …"], ...result.symptoms.map((item, index) => [String(index), item.title])], "", (value) => this.symptom(result.symptoms[Number(value)], value), { "aria-label": "What is wrong?" });
            this.answer = el("div", { class: "lm-panel" });
            const page = el("iframe", { class: "lm-report-page", sandbox: "", title: "The whole report" });
            /* laid out when it is seen: a frame in a closed fold has no width */
            const fold = el("details", { ontoggle: () => fold.open && !page.srcdoc && (page.srcdoc = result.html) }, el("summary", {}, "The whole report"), page);
            const save = el("a", { class: "lm-button", download: "lora-analysis.html", href: URL.createObjectURL(new Blob([result.html], { type: "text/html" })) }, "Save as HTML");
            this.content.replaceChildren(
                el("ul", { class: "lm-facts" }, ...result.facts.map((text) => el("li", { class: "lm-info" }, text)), ...result.warnings.map((text) => el("li", { class: "lm-warn" }, text))),
                advice.length ? el("ul", { class: "lm-facts" }, ...advice) : el("p", { class: "lm-dim" }, "Nothing about these LoRAs asks for a change."),
                el("div", { class: "lm-line" }, symptoms, save),
                this.answer,
                fold,
            );
        }

        item(item) {
            const can = Object.keys(item.apply).length > 0;
            return el("li", { class: "lm-warn" }, el("b", {}, item.title), ` ${item.reason} `, can ? button("Apply", () => this.apply(item), { class: "lm-button lm-small", "aria-label": `Apply: ${item.title}` }) : null);
        }

        symptom(found, value) {
            if (value === "") return void this.answer.replaceChildren();
            this.answer.replaceChildren(...found.says.map((text) => el("p", {}, text)), el("ul", { class: "lm-facts" }, ...found.tries.map((item) => this.item(item))));
            return undefined;
        }

        async apply(item) {
            const reply = await this.app.ask("apply", { state: this.app.state.data, changes: item.apply });
            if (!reply) return;
            const sources = reply.state.sources.map((row) => this.app.state.row(this.app.state.data.next++, row));
            this.app.state.replace({ ...reply.state, sources });
            this.app.say(`${item.title}: done. Ctrl+Z takes it back.`);
        }
    }

    space.Analysis = Analysis;
})();
