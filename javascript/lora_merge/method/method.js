/* How the sources are merged: the method, its settings, and how large the result may be. */

import { el, select } from "../core/dom.js";
import { leave, wasOpen } from "../core/folds.js";
import { knobControl } from "./knob.js";
import { RANKS, RANK_START, RANK_UNITS } from "./ranks.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "library" | "state">} MethodNeeds
 */

const FOLD = "more settings";

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
        this.names = select(
            needs.catalog.namings,
            "",
            (value) => ((needs.state.data.names = value), needs.state.changed("value")),
            { "aria-label": "Names" },
        );
        this.set = el("span", { class: "lm-dim" });
        this.convolutions = this.field3x3();
        this.drawn = el(
            "label",
            { title: "Of random dropping: the same seed gives the same file", hidden: true },
            el("span", {}, "Seed"),
            this.seed,
        );
        this.more = el(
            "details",
            {
                class: "lm-more-settings",
                ontoggle: () => this.toggled(),
            },
            el("summary", {}, "More settings ", this.set),
            this.settings(),
        );
        this.box = el(
            "section",
            { class: "lm-card", "aria-label": "Method" },
            el("div", { class: "lm-line lm-head" }, el("h3", {}, "Method"), this.choice, this.drawn),
            this.sentence,
            this.knobs,
            this.more,
        );
        needs.state.listen((what, origin) => (what === "rows" ? this.render() : this.update(origin)));
        this.render();
        this.unfold(wasOpen(FOLD));
    }

    field3x3() {
        return el(
            "label",
            { title: "Rank of 3×3 convolutions, where it differs" },
            el("span", {}, "Rank of convolutions"),
            this.conv,
        );
    }

    settings() {
        return el(
            "div",
            { class: "lm-fields lm-settings" },
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
            this.convolutions,
            el(
                "label",
                { title: "Leave out ranks and modules below this share of the largest; 0 = keep all" },
                el("span", {}, "Prune below a share"),
                this.prune,
            ),
            el(
                "label",
                {
                    title:
                        "Leave out ranks whose singular value is below this number, whatever the " +
                        "largest; 0 = keep all. An analysis says what either saves and costs",
                },
                el("span", {}, "Prune below a number"),
                this.below,
            ),
            el(
                "label",
                {
                    class: "lm-double",
                    title:
                        "How the modules are called in the file. By default as " +
                        "every host of the base model knows them",
                },
                el("span", {}, "Names"),
                this.names,
            ),
        );
    }

    /* what differs from the usual, in words; nothing acts unseen */
    differing() {
        const { rank, conv_rank, prune, prune_below, names, defaults } = this.data;
        const mode = RANKS.find(([name]) => name === rank.mode) || RANKS[0];
        const unit = { rank: "", budget: " MB" }[rank.mode] || "";
        return [
            rank.mode === "auto"
                ? ""
                : `${mode[1].toLowerCase()}${rank.value === null ? "" : ` ${rank.value}${unit}`}`,
            conv_rank === null ? "" : `rank of convolutions ${conv_rank}`,
            prune ? `pruned below ${prune}` : "",
            prune_below ? `pruned below the number ${prune_below}` : "",
            (names || "") === (defaults.names || "") ? "" : "names",
        ].filter(Boolean);
    }

    /* as it was left by hand; a recipe that sets something of it opens it, too */
    toggled() {
        if (this.more.open !== this.opens) leave(FOLD, this.more.open);
        this.opens = this.more.open;
    }

    unfold(yes) {
        this.opens = yes;
        this.more.open = yes;
    }

    get data() {
        return this.needs.state.data;
    }

    /* the method, or that of a group, drops at random */
    draws() {
        const used = new Set(this.needs.state.used().map((row) => row.group));
        const groups = Object.entries(this.data.groups).filter(([name]) => used.has(name));
        return [this.data.method, ...groups.map(([, group]) => group.method)].some(
            (name) => this.needs.catalog.method(name).draws,
        );
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
        if (this.differing().length) this.unfold(true);
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
        this.names.value = this.data.names || "";
        this.set.textContent = this.differing().join(" · ");
        const items = this.needs.state.used().map((row) => this.needs.library.item(row.key));
        this.convolutions.hidden =
            this.data.conv_rank === null && !items.some((item) => item && item.convolutions);
        this.drawn.hidden = !this.draws();
    }
}
