/* Two merges of the history side by side: what changed between their recipes, their numbers block by
   block, their reports. */

import { Scale, heatMap } from "../analysis/heatmap.js";
import { numbersTable, themed } from "../analysis/tables.js";
import { button, el, fillSelect, select } from "../core/dom.js";
import { figure, fixed, megabytes, policyWords, share } from "../core/format.js";
import { colourOf, letterOf } from "../core/letters.js";
import { pause } from "../core/timing.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "catalog" | "say">} CompareNeeds
 */

/* what the map and the table show: of a side and a LoRA's place in it, or of the whole block */
/** @type {[string, string, string, boolean][]} */
const FIGURES = [
    ["shares", "Share", "share of the merge, %", true],
    ["weights", "Weight", "ratio × block weight", false],
    ["heard", "Norm", "‖weight × ΔW‖ of each LoRA", false],
    ["crosstalk", "Cross-talk", "what the others add to each one's own work, %", true],
];

export class CompareRecipes {
    /**
     * @param {CompareNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.kind = "shares";
        this.picked = ["", ""];
        const pick = (at, label) =>
            select([], "", (value) => ((this.picked[at] = value), (this.chosen = true)), {
                "aria-label": label,
                class: "lm-entry",
            });
        this.menus = [pick(0, "First recipe"), pick(1, "Second recipe")];
        this.bar = el(
            "div",
            { class: "lm-line" },
            this.menus[0],
            "and",
            this.menus[1],
            button("Compare recipes", () => this.compare(), { title: "Side by side, block by block" }),
            button("Its report", () => this.report(this.picked[1]), {
                title: "The analysis kept with the second one",
            }),
        );
        this.out = el("div", { class: "lm-panel", "aria-live": "polite" });
        this.none = el(
            "p",
            { class: "lm-dim" },
            "Two merges stand side by side here, once there are two: change something and merge again.",
        );
        this.box = el(
            "section",
            { class: "lm-panel lm-compare", "aria-label": "Compare recipes" },
            this.bar,
            this.none,
            this.out,
        );
    }

    /**
     * Offer the entries of the history.
     * @param {any[]} entries
     * @param {Record<string, string>} labels by id: what tells each from every other
     */
    draw(entries, labels) {
        const usable = entries.filter((entry) => entry.status !== "broken");
        const options = usable.map((entry) => [entry.id, labels[entry.id] || entry.name]);
        this.bar.hidden = !usable.length;
        this.none.hidden = usable.length > 0;
        const ids = usable.map((entry) => entry.id);
        /* the newest and the one before it, until the person picks */
        const newest = [ids[1] || ids[0] || "", ids[0] || ""];
        this.picked = this.picked.map((id, at) => (this.chosen && ids.includes(id) ? id : newest[at]));
        this.before = Object.fromEntries(
            usable.map((entry, at) => [entry.id, entry.based_on || ids[at + 1]]),
        );
        this.menus.forEach((menu, at) => fillSelect(menu, options, this.picked[at]));
    }

    /**
     * Put an entry beside the one it was developed from, or the one before it.
     * @param {string} entry
     */
    choose(entry) {
        this.chosen = true;
        this.picked = [(this.before && this.before[entry]) || this.picked[0], entry];
        if (this.picked[0] === entry && this.before)
            this.picked[0] = Object.keys(this.before).find((id) => id !== entry) || entry;
        this.menus.forEach((menu, at) => (menu.value = this.picked[at]));
        return this.compare();
    }

    /* make the report of an entry that has none; false when it cannot be made */
    async make(entry) {
        const started = await this.needs.ask("report_make", { entry });
        if (!started) return false;
        let now = started;
        while (now.state === "waiting" || now.state === "running") {
            await pause(200);
            now = await this.needs.ask("job", { job: started.job });
            if (!now) return false;
        }
        if (now.state === "failed") this.needs.say(now.error, true);
        return now.state === "done";
    }

    async report(entry) {
        let reply = await this.needs.ask("report", { entry });
        if (reply && reply.text === null) {
            this.out.replaceChildren(el("p", { class: "lm-dim" }, "measuring …"));
            if (await this.make(entry)) reply = await this.needs.ask("report", { entry });
        }
        this.out.replaceChildren(
            ...(reply && reply.text
                ? [this.page(reply.text)]
                : [el("p", { class: "lm-dim" }, "There is no report of this merge.")]),
        );
    }

    page(text) {
        return el("iframe", {
            class: "lm-kept-page",
            sandbox: "",
            title: "Report kept with the merge",
            srcdoc: themed(text),
        });
    }

    async compare() {
        const [entry, other] = this.picked;
        if (!entry || !other) return;
        this.out.replaceChildren(el("p", { class: "lm-dim" }, "measuring …"));
        let reply = await this.needs.ask("compare_recipes", { entry, other });
        if (reply && reply.missing.length) {
            for (const id of new Set(reply.missing)) await this.make(id);
            reply = await this.needs.ask("compare_recipes", { entry, other });
        }
        this.found = reply;
        this.out.replaceChildren();
        if (reply) this.show();
    }

    show() {
        const { found } = this;
        const sides = found.entries.map((entry, side) => this.side(entry, side));
        this.out.replaceChildren(
            el("div", { class: "lm-sides" }, ...sides),
            el("b", {}, "What changed"),
            el(
                "ul",
                { class: "lm-said", "aria-label": "What changed" },
                ...found.changes.map((text) => el("li", { class: "lm-info" }, text)),
            ),
            ...(found.blocks.length
                ? [this.map(), this.table()]
                : [el("p", { class: "lm-dim" }, "There are no reports to put side by side.")]),
            this.reports(),
        );
    }

    chip(index) {
        return el("span", { class: "lm-letter", style: `--lm-colour:${colourOf(index)}` }, letterOf(index));
    }

    side(entry, at) {
        const whole = this.found.whole[at];
        const lines = [["Method", this.needs.catalog.title(entry.method)]];
        if (whole.policy)
            lines.push([
                "Rank",
                policyWords(whole.policy) +
                    (whole.rank.length ? ` (${[...new Set(whole.rank)].join(" to ")})` : ""),
            ]);
        if (whole.norm !== undefined) {
            lines.push(
                ["Norm", figure(whole.norm)],
                ["Size", whole.bytes === null ? "–" : megabytes(whole.bytes)],
                ["Kept of the merge", whole.error ? share(1 - whole.error ** 2, 1) : "all"],
                ["Beside unrelated LoRAs", `${fixed(whole.cancel, 2)} ×`],
                ["Strongest direction", whole.growth === null ? "–" : `× ${fixed(whole.growth, 2)}`],
                ["Sum of ratios", figure(whole.total)],
            );
        }
        for (const pair of this.found.pairs[at])
            lines.push([pair.names.join(" and "), `${pair.relation}, cosine ${fixed(pair.cosine, 3)}`]);
        const sources = this.found.sources[at].map((source, index) =>
            el(
                "div",
                { class: "lm-line" },
                this.chip(index),
                el("bdi", {}, source.label),
                `at ${figure(source.ratio)}`,
                whole.shares ? el("small", {}, `${share(whole.shares[index])} of the merge`) : null,
            ),
        );
        const given = sources.length
            ? sources
            : entry.sources.map((source, index) =>
                  el(
                      "div",
                      { class: "lm-line" },
                      this.chip(index),
                      el("bdi", {}, String(source.name)),
                      `at ${figure(source.ratio)}`,
                  ),
              );
        return el(
            "div",
            { class: "lm-panel", "aria-label": at ? "Second merge" : "First merge" },
            el("b", {}, `${at + 1} `, el("bdi", {}, entry.name || entry.id)),
            el("small", {}, (entry.time || "").slice(0, 16).replace("T", " ")),
            ...given,
            numbersTable(
                [["Figure"], ["Value"]],
                lines,
                at ? "Second merge in numbers" : "First merge in numbers",
            ),
            entry.notes ? el("p", {}, entry.notes) : null,
        );
    }

    /* ------------------------------------------------------------ block by block */

    map() {
        const choose = (kind) => {
            this.kind = kind;
            const old = this.mapBox;
            old.replaceWith(this.map());
            this.mapBox.querySelector("[aria-checked=true]").focus({ preventScroll: true });
        };
        const step = (event) => {
            if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
            event.preventDefault();
            const at =
                FIGURES.findIndex(([kind]) => kind === this.kind) + (event.key === "ArrowRight" ? 1 : -1);
            choose(FIGURES[(at + FIGURES.length) % FIGURES.length][0]);
        };
        const [kind, title, said, percent] = FIGURES.find(([name]) => name === this.kind);
        const { blocks, sources } = this.found;
        const rows = [];
        const values = [];
        sources.forEach((list, side) =>
            list.forEach((source, index) => {
                rows.push({
                    name: `${side + 1}, ${letterOf(index)} ${source.label}`,
                    head: el(
                        "span",
                        { class: "lm-line" },
                        String(side + 1),
                        this.chip(index),
                        el("bdi", {}, source.label),
                    ),
                });
                values.push(
                    blocks.map((block) =>
                        block.sides[side] && block.sides[side][kind] ? block.sides[side][kind][index] : null,
                    ),
                );
            }),
        );
        const known = values.flat().filter((value) => value !== null && value !== undefined);
        const low = Math.min(0, ...known);
        const high = kind === "shares" ? 1 : Math.max(1e-12, ...known);
        const write = percent ? (value) => String(Math.round(100 * value)) : (value) => figure(value, 2);
        const scale = new Scale(low, high, write, percent ? " %" : "");
        const columns = blocks.map((block) => block.block);
        const tell = (line, column) =>
            `${columns[column]}, ${rows[line].name}: ${title.toLowerCase()} ` +
            `${percent ? share(values[line][column], 1) : figure(values[line][column])}`;
        this.mapBox = el(
            "div",
            { class: "lm-map" },
            el(
                "div",
                { class: "lm-line" },
                el("b", {}, "Block by block"),
                el(
                    "div",
                    {
                        class: "lm-choice",
                        role: "radiogroup",
                        "aria-label": "What the two are compared by",
                        onkeydown: step,
                    },
                    ...FIGURES.map(([name, label]) =>
                        button(label, () => choose(name), {
                            class: "lm-button lm-small",
                            role: "radio",
                            "aria-checked": String(name === kind),
                            tabindex: name === kind ? 0 : -1,
                        }),
                    ),
                ),
                el("small", {}, said),
            ),
            heatMap({ label: `${title} by block, both merges`, rows, columns, values, scale, tell }),
        );
        return this.mapBox;
    }

    table() {
        const { blocks, sources } = this.found;
        const each = (list, side) =>
            list.map((source, index) => [
                `${side + 1}: ${letterOf(index)}`,
                `${source.label}: weight, share of the merge`,
            ]);
        const head = [
            ["Block"],
            ...each(sources[0], 0),
            ["1: norm"],
            ...each(sources[1], 1),
            ["2: norm"],
            ["Change", "of the norm, from the first to the second"],
        ];
        const cells = (block, at) => {
            const side = block.sides[at];
            const other = block.sides[1 - at];
            const differs = (index) =>
                Boolean(
                    side &&
                    other &&
                    other.weights &&
                    side.weights &&
                    side.weights[index] !== other.weights[index],
                );
            return [
                ...sources[at].map((_, index) =>
                    el(
                        "td",
                        { class: differs(index) ? "lm-differs" : "" },
                        side ? `${figure(side.weights[index])} · ${share(side.shares[index])}` : "–",
                    ),
                ),
                side ? figure(side.norm) : "–",
            ];
        };
        const change = (value) =>
            value === null ? "–" : `${value > 0 ? "+" : ""}${(100 * value).toFixed(1)} %`;
        return numbersTable(
            head,
            blocks.map((block) => [
                block.block,
                ...cells(block, 0),
                ...cells(block, 1),
                change(block.change),
            ]),
            "Block by block, both merges",
            false,
        );
    }

    reports() {
        const holder = el("div", { class: "lm-sides" });
        const fill = async () => {
            if (!box.open || holder.childElementCount) return;
            for (const entry of this.found.entries) {
                const reply = await this.needs.ask("report", { entry: entry.id });
                holder.append(
                    reply && reply.text ? this.page(reply.text) : el("p", { class: "lm-dim" }, "no report"),
                );
            }
        };
        const box = el("details", { ontoggle: fill }, el("summary", {}, "Both reports"), holder);
        return box;
    }
}
