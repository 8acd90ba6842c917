"use strict";

/* The rows: which LoRAs, how strong, in which order. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button } = space;
    const LETTERS = ["A", "B", "C", "D"];

    class Sources {
        constructor(app) {
            this.app = app;
            this.rows = el("div", { class: "lm-rows" });
            this.sum = el("span", { class: "lm-sum", title: "Sum of the ratios", "aria-live": "polite" });
            this.levels = el("div", { class: "lm-levels" });
            this.prompt = this.promptFold();
            this.box = el(
                "section",
                { class: "lm-card", "aria-label": "Sources" },
                el(
                    "div",
                    { class: "lm-line" },
                    el("h3", {}, "Sources"),
                    el("span", { class: "lm-grow" }),
                    button("+ Add source", () => this.add(), { class: "lm-button lm-small lm-primary" }),
                    button("From prompt or image…", () => this.togglePrompt(), { class: "lm-button lm-small" }),
                    button("Equal", () => this.spread((n) => 1 / n), { class: "lm-button lm-small", title: "The same share for all, 1 in all" }),
                    button("Normalise to 1", () => this.normalise(), { class: "lm-button lm-small", title: "Keep the proportions, make the sum 1" }),
                    button("0.7 / 0.3", () => this.lead(), { class: "lm-button lm-small", title: "The first leads" }),
                    button("Set all…", () => this.setAll(), { class: "lm-button lm-small", title: "One ratio for all" }),
                    button("Copy as prompt", () => this.copyPrompt(), { class: "lm-button lm-small", title: "The sources as <lora:…> tags" }),
                    this.sum,
                ),
                this.prompt,
                this.rows,
                this.levels,
            );
            this.picker = new space.Picker(app);
            app.state.listen((what, origin) => (what === "rows" ? this.render() : this.update(origin)));
            this.render();
        }

        get data() {
            return this.app.state.data;
        }

        render() {
            this.picker.close();
            this.views = this.data.sources.map((row, index) => this.view(row, index));
            this.rows.replaceChildren(...this.views.map((view) => view.box));
            this.renderLevels();
            this.update();
        }

        view(row, index) {
            const item = this.app.item(row.key);
            const colour = space.colour(index);
            const letter = space.letter(index);
            const name = item ? item.name : row.name ? `${row.name} (missing)` : "Pick a LoRA …";
            const change = (value, origin) => {
                const number = Number.parseFloat(value);
                if (!Number.isFinite(number)) return;
                row.ratio = number;
                this.app.state.changed("value", origin);
            };
            const slider = el("input", { type: "range", min: -2, max: 2, step: 0.05, value: row.ratio, "aria-label": `Ratio of ${letter}`, oninput: () => change(slider.value, slider) });
            const box = el("input", { type: "number", step: 0.05, value: row.ratio, class: "lm-number", "aria-label": `Ratio of ${letter}, exact`, oninput: () => change(box.value, box) });
            const pick = button(el("bdi", {}, name), () => this.picker.open(row, pick), { class: `lm-button lm-name${item || !row.name ? "" : " lm-missing"}`, title: item ? `${item.folder}/${item.name}` : name, "aria-haspopup": "dialog" });
            const roles = this.app.method().roles;
            const fold = this.encoders(row, item, letter);
            const view = { row, slider, box, fold };
            view.box = el(
                "div",
                { class: `lm-row${row.on ? "" : " lm-off"}`, style: `--lm-colour:${colour}` },
                el("div", { class: "lm-line" },
                    el("input", { type: "checkbox", checked: row.on, "aria-label": `Use ${letter}`, title: "On or off", onchange: (event) => ((row.on = event.target.checked), this.app.state.changed("rows")) }),
                    el("span", { class: "lm-letter", "aria-hidden": "true" }, letter),
                    pick,
                    slider,
                    box,
                    el("span", { class: "lm-grow" }),
                    roles.length ? space.select([["", "role –"], ...roles.map((role) => [role, role])], row.role, (value) => ((row.role = value), this.app.state.changed("value")), { "aria-label": `Role of ${letter}`, title: "What this LoRA is for" }) : null,
                    space.select([["", "no group"], ...LETTERS.map((group) => [group, `group ${group}`])], row.group, (value) => ((row.group = value), this.app.state.changed("rows")), { "aria-label": `Group of ${letter}`, title: "Sources of one group are merged first" }),
                    button("TE", () => (fold.hidden = !fold.hidden), { title: "Text-encoder ratio", "aria-label": `Text-encoder ratio of ${letter}`, class: `lm-button lm-small${row.te ? " lm-set" : ""}` }),
                    button("↑", () => this.app.state.move(row, -1), { "aria-label": `Move ${letter} up`, class: "lm-button lm-small", disabled: index === 0 }),
                    button("↓", () => this.app.state.move(row, 1), { "aria-label": `Move ${letter} down`, class: "lm-button lm-small", disabled: index === this.data.sources.length - 1 }),
                    button("✕", () => this.app.state.remove(row), { "aria-label": `Remove ${letter}`, class: "lm-button lm-small" }),
                ),
                item ? space.badges(item) : null,
                fold,
                item && item.problem ? el("div", { class: "lm-problem" }, item.problem) : null,
            );
            return view;
        }

        encoders(row, item, letter) {
            const two = item && item.family === "SDXL";
            const names = two ? ["TE1", "TE2"] : ["text encoder"];
            const box = el("div", { class: "lm-line lm-fold", hidden: !row.te });
            box.append(
                ...names.map((name, index) => {
                    const field = el("input", {
                        type: "number", step: 0.05, class: "lm-number", placeholder: "= ratio", value: row.te && row.te[index] !== null && row.te[index] !== undefined ? row.te[index] : "",
                        "aria-label": `${name} ratio of ${letter}`,
                        oninput: () => {
                            const te = row.te ? [...row.te] : names.map(() => null);
                            te[index] = field.value === "" ? null : Number.parseFloat(field.value);
                            row.te = te.every((value) => value === null) ? null : te;
                            this.app.state.changed("value", field);
                        },
                    });
                    return el("label", {}, `${name} `, field);
                }),
                el("span", { class: "lm-dim" }, "replaces the ratio for the text encoder; empty = the same"),
            );
            return box;
        }

        update(origin) {
            for (const view of this.views) {
                if (view.slider !== origin) view.slider.value = view.row.ratio;
                if (view.box !== origin) view.box.value = space.number(view.row.ratio);
            }
            const sum = this.app.state.used().reduce((total, row) => total + row.ratio, 0);
            this.sum.textContent = `Σ ${sum.toFixed(2)}`;
        }

        renderLevels() {
            const used = LETTERS.filter((letter) => this.data.sources.some((row) => row.group === letter));
            this.levels.replaceChildren(
                ...used.map((letter) => {
                    const group = (this.data.groups[letter] = this.data.groups[letter] || { method: "weighted_sum", ratio: 1 });
                    const ratio = el("input", { type: "number", step: 0.05, value: group.ratio, class: "lm-number", "aria-label": `Ratio of group ${letter}`, oninput: () => ((group.ratio = Number.parseFloat(ratio.value)), this.app.state.changed("value", ratio)) });
                    return el("div", { class: "lm-line lm-level" },
                        el("b", {}, `Group ${letter}`), "is merged first, by",
                        space.select(this.app.methodOptions(), group.method, (value) => ((group.method = value), this.app.state.changed("value")), { "aria-label": `Method of group ${letter}` }),
                        el("label", {}, "ratio ", ratio));
                }),
            );
        }

        add() {
            const empty = this.data.sources.find((row) => !row.key);
            const row = empty || this.app.state.add({ ratio: 0.5 });
            this.open(row);
        }

        open(row) {
            const view = this.views.find((found) => found.row === row);
            if (view) this.picker.open(row, view.box.querySelector(".lm-name"));
        }

        focus(row) {
            const view = this.views.find((found) => found.row === row);
            if (view) view.box.querySelector(".lm-name").focus();
        }

        spread(share) {
            const rows = this.data.sources.filter((row) => row.on && (row.key || !this.app.state.used().length));
            rows.forEach((row, index) => (row.ratio = Math.round(share(rows.length, index) * 1000) / 1000));
            this.app.state.changed("value");
        }

        lead() {
            this.spread((count, index) => (index ? 0.3 / Math.max(1, count - 1) : count > 1 ? 0.7 : 1));
        }

        normalise() {
            const rows = this.app.state.used();
            const sum = rows.reduce((total, row) => total + row.ratio, 0);
            if (!sum) return this.app.say("The ratios add up to 0, so they cannot be scaled to 1.");
            for (const row of rows) row.ratio = Math.round((row.ratio / sum) * 1000) / 1000;
            return this.app.state.changed("value");
        }

        setAll() {
            const first = this.data.sources[0] ? this.data.sources[0].ratio : 1;
            for (const row of this.data.sources) row.ratio = first;
            this.app.state.changed("value");
            this.app.say(`All ratios are ${first} now, like the first.`);
        }

        async copyPrompt() {
            const reply = await this.app.ask("prompt_write", { state: this.data });
            if (!reply) return;
            try {
                await navigator.clipboard.writeText(reply.text);
                this.app.say(`Copied: ${reply.text}`);
            } catch {
                this.app.say(reply.text);
            }
        }

        promptFold() {
            this.text = el("textarea", { rows: 2, placeholder: "Paste a prompt with <lora:…> tags, or drop a generated picture here", "aria-label": "Prompt with LoRA tags" });
            const file = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": "A generated picture", onchange: () => file.files[0] && this.readImage(file.files[0]) });
            const box = el("div", { class: "lm-fold", hidden: true, ondragover: (event) => event.preventDefault(), ondrop: (event) => {
                event.preventDefault();
                if (event.dataTransfer.files[0]) this.readImage(event.dataTransfer.files[0]);
            } }, this.text, el("div", { class: "lm-line" }, button("Read", () => this.readPrompt({ text: this.text.value }), { class: "lm-button lm-primary" }), file));
            return box;
        }

        togglePrompt() {
            this.prompt.hidden = !this.prompt.hidden;
            if (!this.prompt.hidden) this.text.focus();
        }

        readImage(file) {
            if (file.size > 24e6) return this.app.say("That picture is larger than 24 MB.");
            const reader = new FileReader();
            reader.onload = () => this.readPrompt({ image: reader.result });
            return reader.readAsDataURL(file);
        }

        async readPrompt(fields) {
            const reply = await this.app.ask("prompt", fields);
            if (!reply) return;
            if (!reply.rows.length) return void this.app.say(["No LoRA tags were found in it.", ...reply.notes].join(" "));
            this.data.sources = reply.rows.map((row) => this.app.state.row(this.data.next++, row));
            this.prompt.hidden = true;
            this.app.state.changed("rows");
            if (reply.notes.length) this.app.say(reply.notes.join("; "));
        }
    }

    space.Sources = Sources;
})();
