/* The panel of the script "LoRA merge comparison" in txt2img and img2img. What is chosen lives in this
   browser and reaches the script as JSON in a hidden field; how much it will make is said by itself. */

import { button, el, find, plain, put, select } from "../core/dom.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "catalog" | "setup">} ComparisonNeeds
 */

const KEY = "lora-merge-comparison-1";

const FROM_TAB = "Merge tab";

const TEXTS = ["ratios", "ranks", "presets", "knob", "strengths", "prompts", "seeds", "cfgs", "sizes"];

const LISTS = ["methods", "samplers"];

const FLAGS = ["knockout", "maps"];

export class ComparisonPanel {
    /**
     * @param {ComparisonNeeds} needs what it takes
     * @param {string} tab txt2img or img2img
     */
    constructor(needs, tab) {
        this.needs = needs;
        this.tab = tab;
        this.place = el("div", { class: "lm-asked" });
        this.said = el("p", { class: "lm-estimate", role: "status", "aria-label": "What will be made" });
        this.verdict = el("div", { id: `lora_merge_verdict_${tab}` });
        this.box = el(
            "div",
            { id: `lora_merge_panel_${tab}`, class: "lora-merge" },
            this.place,
            this.said,
            this.verdict,
        );
        this.data = this.load();
    }

    /* only what has the right form: the page may be older or newer than what it left */
    load() {
        let found = {};
        try {
            found = JSON.parse(localStorage.getItem(`${KEY}-${this.tab}`)) || {};
        } catch {
            /* nothing kept */
        }
        const data = {
            merge: typeof found.merge === "string" ? found.merge : FROM_TAB,
            columns: Array.isArray(found.columns) ? found.columns : null,
        };
        for (const name of TEXTS) data[name] = typeof found[name] === "string" ? found[name] : "";
        for (const name of LISTS) data[name] = Array.isArray(found[name]) ? found[name].map(String) : [];
        for (const name of FLAGS) data[name] = found[name] === true;
        return data;
    }

    changed() {
        try {
            localStorage.setItem(`${KEY}-${this.tab}`, JSON.stringify(this.data));
        } catch {
            /* private windows keep nothing */
        }
        this.tell();
    }

    text() {
        const { columns, ...more } = this.data;
        return JSON.stringify(columns ? this.data : more);
    }

    tell() {
        put(find(`#lora_merge_asked_${this.tab} textarea, #lora_merge_asked_${this.tab} input`), this.text());
    }

    shown() {
        return Boolean(this.choices && this.box.offsetParent);
    }

    /* twice a second: the column comes into the page when the script is chosen, and anew with every
       "Reload UI" */
    watch() {
        const column = find(`#lora_merge_compare_${this.tab}`);
        if (!column) return;
        if (this.box.parentElement !== column) column.prepend(this.box);
        if (!column.offsetParent) return;
        if (!this.choices) this.begin();
        else this.tell();
        this.count();
    }

    async begin() {
        if (this.beginning) return;
        this.beginning = true;
        const reply = await this.needs.ask("compare_choices", {});
        /* a server that cannot answer is not asked twice a second */
        setTimeout(() => (this.beginning = false), reply ? 0 : 10000);
        if (!reply) return;
        this.choices = reply;
        if (!this.data.columns) this.data.columns = [...reply.ticked];
        for (const [name, known] of [
            ["methods", this.needs.catalog.methods.map((method) => method.name)],
            ["samplers", reply.samplers],
            ["columns", reply.columns],
        ])
            this.data[name] = this.data[name].filter((one) => known.includes(one));
        this.draw();
        this.tell();
    }

    /* how many pictures, or what is wrong; asked when it may have changed */
    async count() {
        const key = `${this.text()}\n${this.needs.setup()}`;
        if (this.counting || key === this.counted || !this.shown()) return;
        this.counting = true;
        const reply = await this.needs.ask("compare_estimate", {
            asked: this.text(),
            setup: this.needs.setup(),
        });
        this.counting = false;
        this.counted = key;
        this.said.textContent = reply ? plain(reply.said) : "";
        this.said.classList.toggle("lm-bad", Boolean(reply && reply.wrong));
    }

    choose(name) {
        this.data.merge = name || FROM_TAB;
        this.changed();
        this.draw();
        this.box.scrollIntoView({ block: "center" });
        this.place.querySelector("input").focus({ preventScroll: true });
    }

    /* ------------------------------------------------------------ drawing */

    field(name, label, hint) {
        return el(
            "label",
            {},
            el("span", {}, label),
            el("input", {
                type: "text",
                placeholder: hint,
                value: this.data[name],
                spellcheck: "false",
                oninput: (event) => this.set(name, event.target.value),
            }),
        );
    }

    tick(label, on, work) {
        return el(
            "label",
            { class: "lm-tick" },
            el("input", { type: "checkbox", checked: on, onchange: (event) => work(event.target.checked) }),
            el("span", {}, label),
        );
    }

    flag(name, label) {
        return this.tick(label, this.data[name], (on) => this.set(name, on));
    }

    set(name, value) {
        this.data[name] = value;
        this.changed();
    }

    /* a menu that adds, and what was added; options as `select` takes them */
    many(name, label, options, titles) {
        const chips = el("span", { class: "lm-chips" });
        const draw = () =>
            chips.replaceChildren(
                ...this.data[name].map((one) =>
                    el(
                        "span",
                        { class: "lm-badge" },
                        titles(one),
                        " ",
                        button("✕", () => change(this.data[name].filter((other) => other !== one)), {
                            class: "lm-plain",
                            "aria-label": `Remove ${titles(one)}`,
                        }),
                    ),
                ),
            );
        const change = (list) => {
            this.set(name, list);
            draw();
        };
        const menu = select(
            [["", "Add …"], ...options],
            "",
            (value) => {
                if (value && !this.data[name].includes(value)) change([...this.data[name], value]);
                menu.value = "";
            },
            { "aria-label": label },
        );
        draw();
        return el("div", { class: "lm-many" }, el("span", {}, label), menu, chips);
    }

    prompts() {
        const said = el("span", { class: "lm-dim", role: "status" });
        const area = el("textarea", {
            rows: 3,
            placeholder: "empty: the prompt above; {trigger} stands for the words of the LoRAs",
            value: this.data.prompts,
            oninput: () => this.set("prompts", area.value),
        });
        const ask = async (fields) => {
            const reply = await this.needs.ask("compare_prompts", fields);
            said.textContent = reply ? reply.said : "";
            return reply;
        };
        const fill = async () => {
            const reply = await ask({});
            if (!reply) return;
            area.value = reply.prompts;
            this.set("prompts", area.value);
        };
        return [
            el("label", {}, el("span", {}, "Test prompts, one per line"), area),
            el(
                "div",
                { class: "lm-line" },
                button("Fill in the test prompts", fill),
                button("Keep these as my test prompts", () => ask({ keep: area.value }), {
                    title: "Kept for the next time; none at all brings the built-in ten back",
                }),
                said,
            ),
        ];
    }

    draw() {
        const { choices, data } = this;
        const list = `lora_merge_names_${this.tab}`;
        const names = el(
            "datalist",
            { id: list },
            ...[FROM_TAB, ...choices.names].map((name) => el("option", { value: name })),
        );
        const merge = this.field(
            "merge",
            "Merge to compare",
            "Merge tab, or the name of a recipe or a merge",
        );
        merge.querySelector("input").setAttribute("list", list);
        const columns = choices.columns.map((one) =>
            this.tick(one, data.columns.includes(one), (on) =>
                this.set(
                    "columns",
                    choices.columns.filter((other) =>
                        other === one ? on : this.data.columns.includes(other),
                    ),
                ),
            ),
        );
        const variants = ["methods", "ratios", "ranks", "presets", "knob", "strengths", "knockout"].some(
            (name) => String(data[name] || "") !== "",
        );
        this.place.replaceChildren(
            merge,
            names,
            el("fieldset", {}, el("legend", {}, "Columns to compare"), ...columns),
            el(
                "details",
                { open: variants },
                el("summary", {}, "Variants of the merge"),
                el(
                    "div",
                    { class: "lm-fields" },
                    this.many("methods", "Methods to compare", this.needs.catalog.methodOptions(), (name) =>
                        this.needs.catalog.title(name),
                    ),
                    this.field("ratios", "Ratios to compare", "0.3/0.7, 0.5/0.5"),
                    this.field("ranks", "Ranks to compare", "8, 16, energy:0.99"),
                    this.field("presets", "Block presets to compare", "A:OUTALL, A:STYLE+B:CHARACTER"),
                    this.field("knob", "One knob to compare", "drop_rate=0.1/0.3/0.5"),
                    this.field("strengths", "Strengths of the merge", "0.6, 0.8, 1.0, 1.2"),
                ),
                this.flag("knockout", "Block knock-out: one column per block switched off"),
            ),
            ...this.prompts(),
            el(
                "div",
                { class: "lm-fields" },
                this.field("seeds", "Seeds to compare", "1, 2"),
                this.many(
                    "samplers",
                    "Samplers to compare",
                    choices.samplers.map((name) => [name, name]),
                    (name) => name,
                ),
                this.field("cfgs", "CFG scales to compare", "5, 7, 9"),
                this.field("sizes", "Sizes to compare", "512x512, 512x768"),
            ),
            this.flag("maps", "Difference maps, merge against stack"),
        );
    }
}
