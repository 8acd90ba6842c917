"use strict";

/* How the sources are merged: the method, its settings, and how large the result may be. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el } = space;
    const RANKS = [
        ["auto", "Automatic"],
        ["lossless", "Lossless"],
        ["rank", "A rank"],
        ["energy", "Share of energy kept"],
        ["error", "Error allowed"],
        ["budget", "File size"],
    ];
    space.RANKS = RANKS;
    const UNITS = { rank: "ranks", energy: "of 1", error: "of 1", budget: "MB" };
    const START = { rank: 32, energy: 0.99, error: 0.05, budget: 50 };

    space.RANK_START = START;

    class Method {
        constructor(app) {
            this.app = app;
            this.choice = space.select(app.methodOptions(), app.state.data.method, (value) => this.pick(value), { "aria-label": "Merge method" });
            this.sentence = el("p", { class: "lm-dim" });
            this.knobs = el("div", { class: "lm-fields lm-knobs" });
            this.value = el("input", { type: "number", class: "lm-number", "aria-label": "Value of the rank policy", oninput: () => this.number("value") });
            this.unit = el("span", { class: "lm-dim" });
            this.mode = space.select(RANKS, "auto", (value) => this.rank(value), { "aria-label": "Rank" });
            this.conv = el("input", { type: "number", min: 1, class: "lm-number", placeholder: "same", "aria-label": "Rank of convolutions", oninput: () => this.field("conv_rank", this.conv) });
            this.prune = el("input", { type: "number", min: 0, max: 1, step: 0.005, class: "lm-number", "aria-label": "Prune below this share", oninput: () => this.field("prune", this.prune) });
            this.below = el("input", { type: "number", min: 0, step: 0.005, class: "lm-number", "aria-label": "Prune below this number", oninput: () => this.field("prune_below", this.below) });
            this.seed = el("input", { type: "number", step: 1, class: "lm-number", "aria-label": "Seed", oninput: () => this.field("seed", this.seed) });
            this.precision = space.select([["fp16", "fp16"], ["bf16", "bf16"], ["float", "float32"]], "fp16", (value) => ((app.state.data.precision = value), app.state.changed("value")), { "aria-label": "Precision" });
            this.names = space.select(app.known.namings, "", (value) => ((app.state.data.names = value), app.state.changed("value")), { "aria-label": "Names" });
            this.box = el(
                "section",
                { class: "lm-card", "aria-label": "Method" },
                el("div", { class: "lm-fields lm-settings" },
                    el("label", { class: "lm-double" }, el("span", {}, "Method"), this.choice),
                    el("label", { class: "lm-double", title: "How many ranks are kept. Automatic: everything where the method is exact, the sum of the sources' ranks elsewhere" }, el("span", {}, "Rank"), el("span", { class: "lm-line" }, this.mode, this.value, this.unit)),
                    el("label", { title: "Rank of 3×3 convolutions, where it differs" }, el("span", {}, "Conv rank"), this.conv),
                    el("label", { title: "Leave out ranks and modules below this share of the largest; 0 = keep all" }, el("span", {}, "Prune"), this.prune),
                    el("label", { title: "Leave out ranks whose singular value is below this number, whatever the largest; 0 = keep all. An analysis says what either saves and costs" }, el("span", {}, "Prune below"), this.below),
                    el("label", {}, el("span", {}, "Precision"), this.precision),
                    el("label", { title: "Of random dropping: the same seed gives the same file" }, el("span", {}, "Seed"), this.seed),
                    el("label", { title: "How the modules are called in the file. By default as every host of the base model knows them" }, el("span", {}, "Names"), this.names)),
                this.knobs,
                this.sentence,
            );
            app.state.listen((what, origin) => (what === "rows" ? this.render() : this.update(origin)));
            this.render();
        }

        get data() {
            return this.app.state.data;
        }

        pick(name) {
            this.data.method = name;
            this.app.state.changed("rows");
            this.choice.focus();
        }

        rank(mode) {
            this.data.rank = { mode, value: START[mode] === undefined ? null : START[mode] };
            this.app.state.changed("value");
        }

        number(name) {
            this.data.rank[name] = Number.parseFloat(this.value.value);
            this.app.state.changed("value", this.value);
        }

        field(name, input) {
            const value = Number.parseFloat(input.value);
            this.data[name] = Number.isFinite(value) ? value : name === "conv_rank" ? null : 0;
            this.app.state.changed("value", input);
        }

        render() {
            const method = this.app.method();
            this.choice.value = method.name;
            this.sentence.replaceChildren(method.sentence, " ", el("a", { href: method.paper, target: "_blank", rel: "noopener noreferrer" }, "Paper ↗"));
            const given = (this.data.knobs[method.name] = this.data.knobs[method.name] || {});
            this.knobs.replaceChildren(...method.knobs.map((knob) => space.knob(knob, given, "", (origin) => this.app.state.changed("value", origin))));
            this.update();
        }

        update(origin) {
            const { rank } = this.data;
            this.mode.value = rank.mode;
            this.value.hidden = this.unit.hidden = START[rank.mode] === undefined;
            this.unit.textContent = UNITS[rank.mode] || "";
            this.value.step = rank.mode === "rank" ? 1 : rank.mode === "budget" ? 1 : 0.005;
            const show = (input, value) => {
                if (input !== origin && input !== document.activeElement) input.value = value === null ? "" : value;
            };
            show(this.value, rank.value);
            show(this.conv, this.data.conv_rank);
            show(this.prune, this.data.prune);
            show(this.below, this.data.prune_below || 0);
            show(this.seed, this.data.seed);
            this.precision.value = this.data.precision;
            this.names.value = this.data.names || "";
        }
    }

    /* the control of one knob; `of` tells the knobs of groups from those of the merge */
    space.knob = (knob, given, of, changed) => {
        const value = given[knob.name] === undefined ? knob.default : given[knob.name];
        const set = (next, origin) => {
            given[knob.name] = next;
            changed(origin);
        };
        const title = knob.name.replaceAll("_", " ");
        const label = of ? `${title} ${of}` : title;
        let control;
        if (knob.kind === "choice") control = space.select(knob.choices.map((choice) => [choice, choice]), value, set, { "aria-label": label });
        else if (knob.kind === "switch") control = el("input", { type: "checkbox", checked: value, "aria-label": label, onchange: (event) => set(event.target.checked) });
        else {
            /* a knob of the sources may have a value for each: a list, in the order of the rows */
            const list = Array.isArray(value) ? value : null;
            const one = list ? list[0] : value;
            const each = el("input", { type: "text", class: "lm-each", inputmode: "decimal", value: list ? list.join(", ") : "", placeholder: "one for each LoRA: 0.2, 0.4", title: "Leave it empty for one value for all", "aria-label": `${label}, one for each LoRA`, oninput: () => many(each) });
            const wrong = el("small", { class: "lm-bad", role: "alert", hidden: true }, `numbers from ${knob.minimum} to ${knob.maximum}, please; the last good ones stay`);
            const many = (origin) => {
                const numbers = each.value.split(/[,;\s]+/).filter(Boolean).map(Number);
                const fine = numbers.every((number) => Number.isFinite(number) && number >= knob.minimum && number <= knob.maximum);
                each.setAttribute("aria-invalid", String(!fine));
                wrong.hidden = fine;
                if (!numbers.length) return set(Number(slider.value), origin);
                return fine && set(numbers.length > 1 ? numbers : numbers[0], origin);
            };
            const all = () => {
                each.value = "";
                each.setAttribute("aria-invalid", "false");
                wrong.hidden = true;
            };
            const box = el("input", { type: "number", min: knob.minimum, max: knob.maximum, step: knob.step, value: one, class: "lm-number", "aria-label": `${label}, exact`, oninput: () => Number.isFinite(box.valueAsNumber) && ((slider.value = box.value), all(), slider.mark(), set(box.valueAsNumber, box)) });
            const slider = space.range({ min: knob.minimum, max: knob.maximum, step: knob.step, value: one, "aria-label": label, oninput: () => ((box.value = slider.value), all(), set(Number(slider.value), slider)) });
            control = el("span", {}, el("span", { class: "lm-line" }, slider, box), ...(knob.scope === "source" ? [each, wrong] : []));
        }
        return el("label", {}, el("span", {}, title), control, el("small", { class: "lm-dim" }, knob.help));
    };

    space.Method = Method;
})();
