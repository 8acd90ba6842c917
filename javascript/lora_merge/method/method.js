/* How the sources are merged: the method, its settings, and how large the result may be. */

import { el, select } from "../core/dom.js";
import { knobControl } from "./knob.js";
import { RANKS, RANK_START, RANK_UNITS } from "./ranks.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "state">} MethodNeeds
 */

export class Method {
    /**
     * @param {MethodNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.choice = select(
            needs.catalog.methodOptions(),
            needs.state.data.method,
            (value) => this.pick(value),
            { "aria-label": "Merge method" },
        );
        this.sentence = el("p", { class: "lm-dim" });
        this.knobs = el("div", { class: "lm-fields lm-knobs" });
        this.value = el("input", {
            type: "number",
            class: "lm-number",
            "aria-label": "Value of the rank policy",
            oninput: () => this.number("value"),
        });
        this.unit = el("span", { class: "lm-dim" });
        this.mode = select(RANKS, "auto", (value) => this.rank(value), { "aria-label": "Rank" });
        this.conv = el("input", {
            type: "number",
            min: 1,
            class: "lm-number",
            placeholder: "same",
            "aria-label": "Rank of convolutions",
            oninput: () => this.field("conv_rank", this.conv),
        });
        this.prune = el("input", {
            type: "number",
            min: 0,
            max: 1,
            step: 0.005,
            class: "lm-number",
            "aria-label": "Prune below this share",
            oninput: () => this.field("prune", this.prune),
        });
        this.below = el("input", {
            type: "number",
            min: 0,
            step: 0.005,
            class: "lm-number",
            "aria-label": "Prune below this number",
            oninput: () => this.field("prune_below", this.below),
        });
        this.seed = el("input", {
            type: "number",
            step: 1,
            class: "lm-number",
            "aria-label": "Seed",
            oninput: () => this.field("seed", this.seed),
        });
        this.precision = select(
            [
                ["fp16", "fp16"],
                ["bf16", "bf16"],
                ["float", "float32"],
            ],
            "fp16",
            (value) => ((needs.state.data.precision = value), needs.state.changed("value")),
            { "aria-label": "Precision" },
        );
        this.names = select(
            needs.catalog.namings,
            "",
            (value) => ((needs.state.data.names = value), needs.state.changed("value")),
            { "aria-label": "Names" },
        );
        this.box = el(
            "section",
            { class: "lm-card", "aria-label": "Method" },
            el(
                "div",
                { class: "lm-fields lm-settings" },
                el("label", { class: "lm-double" }, el("span", {}, "Method"), this.choice),
                el(
                    "label",
                    {
                        class: "lm-double",
                        title:
                            "How many ranks are kept. Automatic: everything where the method is " +
                            "exact, the sum of the sources' ranks elsewhere",
                    },
                    el("span", {}, "Rank"),
                    el("span", { class: "lm-line" }, this.mode, this.value, this.unit),
                ),
                el(
                    "label",
                    { title: "Rank of 3×3 convolutions, where it differs" },
                    el("span", {}, "Conv rank"),
                    this.conv,
                ),
                el(
                    "label",
                    { title: "Leave out ranks and modules below this share of the largest; 0 = keep all" },
                    el("span", {}, "Prune"),
                    this.prune,
                ),
                el(
                    "label",
                    {
                        title:
                            "Leave out ranks whose singular value is below this number, whatever the " +
                            "largest; 0 = keep all. An analysis says what either saves and costs",
                    },
                    el("span", {}, "Prune below"),
                    this.below,
                ),
                el("label", {}, el("span", {}, "Precision"), this.precision),
                el(
                    "label",
                    { title: "Of random dropping: the same seed gives the same file" },
                    el("span", {}, "Seed"),
                    this.seed,
                ),
                el(
                    "label",
                    {
                        title:
                            "How the modules are called in the file. By default as every host of the " +
                            "base model knows them",
                    },
                    el("span", {}, "Names"),
                    this.names,
                ),
            ),
            this.knobs,
            this.sentence,
        );
        needs.state.listen((what, origin) => (what === "rows" ? this.render() : this.update(origin)));
        this.render();
    }

    get data() {
        return this.needs.state.data;
    }

    pick(name) {
        this.data.method = name;
        this.needs.state.changed("rows");
        this.choice.focus();
    }

    rank(mode) {
        this.data.rank = { mode, value: RANK_START[mode] === undefined ? null : RANK_START[mode] };
        this.needs.state.changed("value");
    }

    number(name) {
        this.data.rank[name] = Number.parseFloat(this.value.value);
        this.needs.state.changed("value", this.value);
    }

    field(name, input) {
        const value = Number.parseFloat(input.value);
        this.data[name] = Number.isFinite(value) ? value : name === "conv_rank" ? null : 0;
        this.needs.state.changed("value", input);
    }

    render() {
        const method = this.needs.catalog.method(this.needs.state.data.method);
        this.choice.value = method.name;
        this.sentence.replaceChildren(
            method.sentence,
            " ",
            el("a", { href: method.paper, target: "_blank", rel: "noopener noreferrer" }, "Paper ↗"),
        );
        const given = (this.data.knobs[method.name] = this.data.knobs[method.name] || {});
        this.knobs.replaceChildren(
            ...method.knobs.map((knob) =>
                knobControl(knob, given, "", (origin) => this.needs.state.changed("value", origin)),
            ),
        );
        this.update();
    }

    update(origin) {
        const { rank } = this.data;
        this.mode.value = rank.mode;
        this.value.hidden = this.unit.hidden = RANK_START[rank.mode] === undefined;
        this.unit.textContent = RANK_UNITS[rank.mode] || "";
        this.value.step = rank.mode === "rank" ? 1 : rank.mode === "budget" ? 1 : 0.005;
        const show = (input, value) => {
            if (input !== origin && input !== document.activeElement)
                input.value = value === null ? "" : value;
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
