"use strict";

/* What a comparison came to: its table, the form for a verdict, and both in the history; saved recipes. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button, select } = space;

    space.figureTable = (figures) => {
        const heads = [...new Set(figures.flatMap((one) => one.against.map((other) => other.column)))];
        const cell = (one, head) => {
            const other = one.against.find((found) => found.column === head);
            if (!other) return "–";
            return `${other.difference.toFixed(2)} ± ${other.spread.toFixed(2)}${other.similarity === null ? "" : ` (${other.similarity.toFixed(3)})`}`;
        };
        return el("div", { class: "lm-scroll" }, el("table", { class: "lm-table" },
            el("caption", {}, "Mean difference of the pictures in grey levels of 255 ± spread over the rows, in brackets structural similarity (1 = the same)"),
            el("thead", {}, el("tr", {}, el("th", {}, "Column"), ...heads.map((head) => el("th", {}, "to ", el("bdi", {}, head))), el("th", {}, "s a picture"), el("th", {}, "LoRAs: s to load"), el("th", {}, "MB"))),
            el("tbody", {}, ...figures.map((one) => el("tr", {},
                el("th", { scope: "row" }, el("bdi", {}, one.column)),
                ...heads.map((head) => el("td", {}, cell(one, head))),
                el("td", {}, one.seconds === null ? "–" : one.seconds.toFixed(1)),
                el("td", {}, one.load === null ? "–" : one.load.toFixed(2)),
                el("td", {}, one.bytes ? (one.bytes / 1e6).toFixed(1) : "–"))))));
    };

    /* save(verdict, notes) answers with a sentence */
    space.verdictForm = (sources, value, save) => {
        const verdict = { preserved: { ...value.preserved }, against: value.against || "", decision: value.decision || "" };
        for (const name of ["artefacts", "consistent"]) if (typeof value[name] === "boolean") verdict[name] = value[name];
        const yes = (name) => select([["", "–"], ["yes", "yes"], ["no", "no"]], verdict[name] === undefined ? "" : verdict[name] ? "yes" : "no", (chosen) => {
            if (chosen) verdict[name] = chosen === "yes";
            else delete verdict[name];
        });
        const notes = el("textarea", { rows: 2, "aria-label": "Notes", value: value.notes || "" });
        const said = el("span", { class: "lm-dim", role: "status" });
        return el("div", { class: "lm-fields" },
            ...sources.map((name) => el("label", {}, el("span", {}, "Character of ", el("bdi", {}, name), " preserved?"), select([["", "–"], ["yes", "yes"], ["partly", "partly"], ["no", "no"]], verdict.preserved[name] || "", (chosen) => {
                if (chosen) verdict.preserved[name] = chosen;
                else delete verdict.preserved[name];
            }))),
            el("label", {}, el("span", {}, "New artefacts?"), yes("artefacts")),
            el("label", {}, el("span", {}, "Consistent over prompts and seeds?"), yes("consistent")),
            el("label", {}, el("span", {}, "Against the stack"), select([["", "–"], ["better", "better"], ["equal", "equal"], ["worse", "worse"]], verdict.against, (chosen) => (verdict.against = chosen))),
            el("label", {}, el("span", {}, "Decision"), select([["", "–"], ["keep", "keep"], ["discard", "discard"], ["next", "try again"]], verdict.decision, (chosen) => (verdict.decision = chosen))),
            el("label", {}, el("span", {}, "Notes"), notes),
            el("div", { class: "lm-line" }, button("Write it down", async () => (said.textContent = await save(verdict, notes.value)), { class: "lm-button lm-primary lm-small" }), said));
    };

    /* ------------------------------------------------------------ history and saved recipes */

    space.verdictCell = (app, entry, after) => {
        const verdict = entry.verdict || {};
        const words = { keep: "keep", discard: "discard", next: "try again", revise: "try again" };
        const text = words[verdict.decision] || (entry.status === "revise" ? "to revise" : verdict.against || "–");
        return button(text, () => {
            const row = after();
            const open = row.nextElementSibling && row.nextElementSibling.classList.contains("lm-judge");
            if (open) return row.nextElementSibling.remove();
            const place = el("div", {});
            const names = [...new Set((entry.sources || []).map((source) => source.name))];
            place.append(space.verdictForm(names, { ...verdict, notes: entry.notes }, async (given, notes) => {
                const reply = await app.ask("verdict", { entry: entry.id, verdict: given, notes });
                if (!reply) return app.message.textContent;
                place.closest("tr").remove();
                if (reply.status === "revise") await app.open({ entry: entry.id });
                app.below.refresh();
                return "Written down.";
            }));
            if (entry.grid) space.gridOf(app, entry.grid, place);
            return row.after(el("tr", { class: "lm-judge" }, el("td", { colspan: row.children.length }, place)));
        }, { class: "lm-button lm-small", title: "Your verdict on this merge", "aria-label": `Verdict on ${entry.name}: ${text}` });
    };

    space.gridOf = async (app, identity, place) => {
        const reply = await app.ask("comparison_picture", { comparison: identity });
        const more = reply && (await app.ask("comparison", { comparison: identity }));
        if (reply) place.append(el("img", { class: "lm-grid-picture", src: reply.picture, alt: "Grid of the comparison this verdict rests on" }));
        if (more && more.found) place.append(space.figureTable(more.found.figures));
    };

    space.Below.prototype.drawRecipes = async function drawRecipes() {
        const reply = await this.app.ask("recipes", {});
        if (!reply || this.name !== "Recipes") return;
        const name = el("input", { type: "text", placeholder: "Name", maxlength: 80, "aria-label": "Name of the recipe" });
        const save = async () => {
            const known = reply.names.includes(name.value.trim());
            if (known && !window.confirm(`Replace the recipe ${name.value.trim()}?`)) return;
            const done = await this.app.ask("recipe_save", { name: name.value, state: this.app.state.data, overwrite: known });
            if (done) this.app.say(`Saved the recipe ${done.name}; <merge:${done.name}:1> uses it in any prompt.`);
            if (done) this.drawRecipes();
        };
        const row = (one) => el("li", { class: "lm-line" }, el("bdi", { class: "lm-grow" }, one),
            this.app.known.can_generate ? button("Use in txt2img", () => this.app.output.useTag(`<merge:${one}:1>`), { class: "lm-button lm-small" }) : null,
            this.app.known.can_generate ? button("Compare in txt2img", () => this.app.pictures.compare(one), { class: "lm-button lm-small" }) : null,
            button("Load", () => this.app.open({ recipe: one }), { class: "lm-button lm-small" }),
            button("✕", async () => window.confirm(`Move the recipe ${one} into the trash folder?`) && (await this.app.ask("recipe_remove", { name: one })) && this.drawRecipes(), { class: "lm-button lm-small", "aria-label": `Delete ${one}` }));
        this.panel.replaceChildren(
            el("div", { class: "lm-line" }, el("b", {}, "Save what is set up"), "as", name, button("Save recipe", save, { class: "lm-button lm-primary" })),
            el("ul", { class: "lm-presets" }, ...reply.names.map(row)),
            reply.names.length ? "" : el("p", { class: "lm-dim" }, "A recipe can be used in any prompt as <merge:NAME:1> without saving a LoRA."),
        );
    };
})();
