/* One LoRA at a time: look into it, save it anew at another rank or strength or with block weights, open
   its recipe. */

import { button, el, select } from "../core/dom.js";
import { megabytes, percentText } from "../core/format.js";
import { later } from "../core/timing.js";
import { RANKS, RANK_START } from "../method/ranks.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "addSource"
 *     | "ask"
 *     | "catalog"
 *     | "grid"
 *     | "merge"
 *     | "open"
 *     | "pick"
 *     | "request"
 *     | "state"
 *     | "verify">} ToolsNeeds
 */

const NOTHING = "Pick a LoRA: its size, rank and name are said here before anything is saved.";

const numberOf = (field, none) => (Number.isFinite(field.valueAsNumber) ? field.valueAsNumber : none);

/** @param {number[]} rank least and most */
const rankText = ([least, most]) => (least === most ? String(most) : `${least} to ${most}`);

/**
 * What a resized, baked or converted LoRA comes to, beside what it is now.
 * @param {import("../types.js").AnewReply} found
 * @returns {HTMLElement[]}
 */
const forecastParts = ({ before, plan, said, larger }) => {
    const most = plan.exact ? "" : "at most ";
    const rows = [
        ["Rank", rankText(before.rank), most + rankText(plan.rank)],
        ["Size", megabytes(before.bytes), most + megabytes(plan.bytes)],
        ["Name", "", plan.name],
    ];
    const taken = plan.exists ? [`${plan.name} exists already: give it another name`] : [];
    return [
        el(
            "table",
            { class: "lm-table lm-forecast-table", "aria-label": "What that gives" },
            el(
                "tbody",
                {},
                ...rows.map(([title, now, then]) =>
                    el(
                        "tr",
                        {},
                        el("th", { scope: "row" }, title),
                        el("td", {}, now ? `${now} → ` : "", el("b", {}, el("bdi", {}, then))),
                    ),
                ),
            ),
        ),
        ...[...said, ...taken].map((text) =>
            el("p", { class: larger || plan.exists ? "lm-warn" : "lm-dim" }, text),
        ),
    ];
};

export class Tools {
    /**
     * @param {ToolsNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.item = null;
        this.pick = button("Pick a LoRA …", () => this.choose(), {
            class: "lm-button lm-name",
            "aria-haspopup": "dialog",
            "aria-label": "LoRA for the tools: Pick a LoRA …",
        });
        this.place = el("div", { class: "lm-anchor" }, this.pick);
        this.out = el("div", { class: "lm-inspected", "aria-live": "polite" });
        this.forecast = el("div", {
            class: "lm-forecast",
            "aria-live": "polite",
            "aria-label": "What that gives",
        });
        this.forecast.append(NOTHING);
        const picked = (work) => () => (this.item ? work(this.item.key) : this.choose());
        this.box = el(
            "div",
            { class: "lm-panel lm-tools" },
            el(
                "div",
                { class: "lm-line" },
                this.place,
                button(
                    "Inspect",
                    picked((key) => this.inspect(key)),
                    { title: "What is in the file" },
                ),
                button(
                    "Open its recipe",
                    picked((key) => needs.open({ key })),
                    { title: "Of a LoRA that was merged here: its sources and settings come into the tab" },
                ),
                button(
                    "Verify",
                    picked((key) => needs.verify(key)),
                    { title: "Hold a merged LoRA against its recipe, with freshly read sources" },
                ),
                button(
                    "Merge it",
                    picked((key) => needs.addSource(key)),
                    { title: "Put it into a row of the merge" },
                ),
            ),
            this.form(),
            this.out,
        );
    }

    choose() {
        const choose = (item) => {
            this.item = item;
            this.pick.replaceChildren(el("bdi", {}, item.name));
            this.pick.setAttribute("aria-label", `LoRA for the tools: ${item.name}`);
            this.pick.title = item.folder ? `${item.folder}/${item.name}` : item.name;
            this.inspect(item.key);
            this.foresee();
            this.pick.focus({ preventScroll: true });
        };
        this.needs.pick(this.pick, this.place, choose, {
            current: this.item ? this.item.key : "",
            family: "",
        });
    }

    /* ------------------------------------------------------------ save it anew */

    form() {
        const soon = later(() => this.foresee(), 250);
        const modes = RANKS.filter(([mode]) => mode !== "auto").map(([mode, text]) => [
            mode,
            mode === "lossless" ? "As it is" : text,
        ]);
        const value = el("input", {
            type: "number",
            class: "lm-number",
            hidden: true,
            "aria-label": "Value of the new rank",
        });
        const mode = select(
            modes,
            "lossless",
            () => {
                value.hidden = mode.value === "lossless";
                value.value = RANK_START[mode.value] || "";
                value.step = mode.value === "energy" || mode.value === "error" ? 0.005 : 1;
                this.foresee();
            },
            { "aria-label": "New rank" },
        );
        value.addEventListener("input", soon);
        const strength = el("input", {
            type: "number",
            step: 0.05,
            value: 1,
            class: "lm-number",
            "aria-label": "Strength to bake in",
            oninput: soon,
        });
        const blocks = el("input", {
            type: "text",
            placeholder: "all 1",
            "aria-label": "Block weights to bake in",
            title: "A list of 12, 17, 20, 26 or 61 values, a preset's name, or OUT00-OUT05=0.5,M00=1",
            oninput: soon,
        });
        const names = select(this.needs.catalog.namings, "", () => this.foresee(), {
            "aria-label": "Names in the new LoRA",
        });
        const name = el("input", {
            type: "text",
            "aria-label": "Name of the new LoRA",
            placeholder: "says what is changed",
            oninput: soon,
        });
        this.fields = { mode, value, strength, blocks, names, name };
        return el(
            "fieldset",
            { class: "lm-anew" },
            el("legend", {}, "Resize, bake or convert"),
            el(
                "div",
                { class: "lm-fields lm-wide-fields" },
                el(
                    "label",
                    { class: "lm-double" },
                    el("span", {}, "Rank"),
                    el("span", { class: "lm-line" }, mode, value),
                ),
                el(
                    "label",
                    { title: "The new LoRA at 1 is the old one at this strength" },
                    el("span", {}, "Strength"),
                    strength,
                ),
                el("label", { class: "lm-double" }, el("span", {}, "Block weights"), blocks),
                el(
                    "label",
                    {
                        class: "lm-double",
                        title:
                            "How the modules are called. LoHa, LoKr and Tucker become LoRA; q, k and " +
                            "v are split or put together where the names want it",
                    },
                    el("span", {}, "Names"),
                    names,
                ),
                el("label", { class: "lm-double" }, el("span", {}, "Name"), name),
            ),
            this.forecast,
            el(
                "div",
                { class: "lm-line" },
                button("Save as a new LoRA", () => this.save(), { class: "lm-button lm-primary" }),
                el("span", { class: "lm-dim" }, "the file itself stays as it is, and so does what is set up"),
            ),
        );
    }

    asked() {
        const { mode, value, strength, blocks, names, name } = this.fields;
        const { data } = this.needs.state;
        return {
            key: this.item.key,
            rank: { mode: mode.value, value: mode.value === "lossless" ? null : numberOf(value, null) },
            strength: numberOf(strength, 1),
            blocks: blocks.value,
            names: names.value,
            precision: data.precision,
            template: name.value.trim(),
            folder: data.output.folder,
        };
    }

    /* size, rank and name before anything is written; the newest answer counts */
    async foresee() {
        if (!this.item) return null;
        const turn = (this.turn = (this.turn || 0) + 1);
        let found = null;
        let wrong = "";
        try {
            found = await this.needs.request("anew", this.asked());
        } catch (error) {
            wrong = error.message;
        }
        if (turn !== this.turn) return null;
        this.fields.blocks.classList.toggle("lm-wrong", !found && Boolean(this.fields.blocks.value.trim()));
        this.fields.name.placeholder = found ? found.plan.name : "";
        this.forecast.replaceChildren(
            ...(found ? forecastParts(found) : [el("p", { class: "lm-bad" }, wrong)]),
        );
        return found;
    }

    async save() {
        if (!this.item) return void this.choose();
        const found = await this.foresee();
        if (found) await this.needs.merge(found.state);
        if (found) await this.foresee();
    }

    /* ------------------------------------------------------------ look into it */

    async inspect(key) {
        this.out.replaceChildren(el("p", { class: "lm-dim" }, "Reading …"));
        const reply = await this.needs.ask("inspect", { key });
        if (!this.item || this.item.key !== key) return;
        if (!reply) return void this.out.replaceChildren();
        const { found } = reply;
        this.out.replaceChildren(
            el("h4", {}, el("bdi", {}, found.file)),
            el("div", { class: "lm-halves" }, this.facts(found), this.bars(found)),
            ...this.words(found),
        );
    }

    facts(found) {
        const rank =
            found.rank.min === found.rank.max
                ? String(found.rank.max)
                : `${found.rank.min} to ${found.rank.max}`;
        const left = Object.entries(found.left_out).map(([why, count]) => `${count} × ${why}`);
        const rows = [
            ["Base model", found.family || `${found.candidates.join(" or ")} (cannot be told)`, found.reason],
            ["Recognised as", found.marks.map((mark) => mark.said).join("; ")],
            [
                "Kind",
                Object.entries(found.kinds)
                    .map(([kind, count]) => `${kind} × ${count}`)
                    .join(", "),
            ],
            ["Rank", rank],
            ["Alpha", String(found.alpha)],
            ["Stored as", found.dtype],
            ["Size", megabytes(found.bytes)],
            [
                "Strength",
                `‖ΔW‖ = ${found.norm.toPrecision(4)}`,
                "Frobenius norm of all weight changes together: twice the norm acts twice as strong",
            ],
            ["Spelling of the keys", found.style],
            ["Embeddings", found.embeddings.join(", ")],
            ["Cannot be merged", left.join("; ")],
            ["Made of", found.made_of],
            ...found.training,
        ];
        rows.push(["Loads in", found.loads_in_words, found.loads_in_why.join("\n")]);
        return el(
            "table",
            { class: "lm-table lm-facts-table" },
            el(
                "tbody",
                {},
                ...rows
                    .filter(([, text]) => text)
                    .map(([title, text, hint]) =>
                        el(
                            "tr",
                            { title: hint },
                            el("th", { scope: "row" }, title),
                            el("td", {}, el("bdi", {}, text)),
                        ),
                    ),
            ),
        );
    }

    bars(found) {
        const most = Math.max(...Object.values(found.block_energy), 1e-12);
        const rows = found.blocks.map((block) => {
            const share = found.block_energy[block] || 0;
            return el(
                "div",
                { class: "lm-bar", role: "listitem", title: this.needs.grid.hint(block) },
                el("span", {}, block),
                el("i", { style: `--lm-share:${(share / most).toFixed(4)}` }),
                el("span", {}, percentText(share, 1)),
            );
        });
        return el(
            "div",
            {},
            el("div", { class: "lm-dim" }, "Energy by block, of 100 %"),
            el(
                "div",
                {
                    class: `lm-bars${rows.length > 30 ? " lm-many" : ""}`,
                    role: "list",
                    "aria-label": "Energy by block",
                },
                ...rows,
            ),
        );
    }

    words(found) {
        if (!found.tags.length) return [el("p", { class: "lm-dim" }, "No tags are written in it.")];
        return [
            el("div", { class: "lm-dim" }, "Most frequent tags"),
            el(
                "div",
                { class: "lm-badges" },
                ...found.tags.map((tag) =>
                    el("span", { class: "lm-badge" }, el("bdi", {}, tag.slice(0, 120))),
                ),
            ),
        ];
    }
}
