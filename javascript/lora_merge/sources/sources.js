/* The rows: which LoRAs, how strong, in which order. */

import { button, el, rangeInput, select } from "../core/dom.js";
import { numberText } from "../core/format.js";
import { colourOf, letterOf } from "../core/letters.js";
import { badges } from "./badges.js";
import { Groups, groupsOf } from "./groups.js";
import { Picker } from "./picker.js";
import { PromptReader } from "./prompt.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "library" | "say" | "state">
 *   & import("./groups.js").GroupsNeeds
 *   & import("./picker.js").PickerNeeds
 *   & import("./prompt.js").PromptNeeds} SourcesNeeds
 */

const small = "lm-button lm-small";

export class Sources {
    /**
     * @param {SourcesNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.rows = el("div", { class: "lm-rows" });
        this.sum = el("output", {
            class: "lm-sum",
            title: "Sum of the ratios of all sources that are on; 1 is usual for a weighted sum",
        });
        this.every = el("input", {
            type: "number",
            step: 0.05,
            value: 1,
            class: "lm-number",
            "aria-label": "One ratio for all",
        });
        this.prompt = new PromptReader(needs);
        this.groups = new Groups(needs);
        this.base = el("div", { class: "lm-line", hidden: true });
        this.box = el(
            "section",
            { class: "lm-card", "aria-label": "Sources" },
            el(
                "div",
                { class: "lm-line" },
                el("h3", {}, "Sources"),
                el("span", { class: "lm-grow" }),
                button("+ Add source", () => this.add(), { class: `${small} lm-primary` }),
                button("From prompt or image…", () => this.prompt.toggle(), { class: small }),
                button("Copy as prompt", () => this.prompt.copy(), {
                    class: small,
                    title: "The sources as <lora:…> tags",
                }),
            ),
            this.prompt.box,
            this.rows,
            el(
                "div",
                { class: "lm-line lm-ratios" },
                el("span", { class: "lm-dim" }, "Ratios"),
                button("Equal", () => this.spread((n) => 1 / n), {
                    class: small,
                    title: "The same share for all, 1 in all",
                }),
                button("0.7 / 0.3", () => this.lead(), { class: small, title: "The first leads" }),
                button("Normalise to 1", () => this.normalise(), {
                    class: small,
                    title: "Keep the proportions, make the sum 1",
                }),
                button("Set all to", () => this.setAll(), {
                    class: small,
                    title: "The same ratio for every source",
                }),
                this.every,
                el("span", { class: "lm-grow" }),
                this.sum,
            ),
            this.base,
            this.groups.box,
        );
        this.picker = new Picker(needs);
        needs.state.listen((what, origin) => (what === "rows" ? this.render() : this.update(origin)));
        this.render();
    }

    get data() {
        return this.needs.state.data;
    }

    render() {
        this.picker.close(true);
        this.views = this.data.sources.map((row, index) => this.view(row, index));
        this.rows.replaceChildren(...this.views.map((view) => view.box));
        if (!this.views.length)
            this.rows.replaceChildren(
                el("p", { class: "lm-dim" }, "No sources. Add one, or read them from a prompt."),
            );
        this.groups.render();
        this.renderBase();
        this.update();
    }

    view(row, index) {
        const item = this.needs.library.item(row.key);
        const letter = letterOf(index);
        const change = (value, origin) => {
            const number = Number.parseFloat(value);
            if (!Number.isFinite(number)) return;
            row.ratio = number;
            this.needs.state.changed("value", origin);
        };
        const slider = rangeInput({
            min: -2,
            max: 2,
            step: 0.05,
            value: row.ratio,
            "aria-label": `Ratio of ${letter}`,
            title: "−2 to 2; any other number goes into the field",
            oninput: () => change(slider.value, slider),
        });
        const box = el("input", {
            type: "number",
            step: 0.05,
            value: row.ratio,
            class: "lm-number",
            "aria-label": `Ratio of ${letter}, exact`,
            oninput: () => change(box.value, box),
        });
        const fold = this.encoders(row, item, letter);
        const view = { row, slider, box };
        view.box = el(
            "div",
            { class: `lm-row${row.on ? "" : " lm-off"}`, style: `--lm-colour:${colourOf(index)}` },
            el("input", {
                type: "checkbox",
                checked: row.on,
                "aria-label": `Use ${letter}`,
                title: "On or off",
                onchange: (event) => ((row.on = event.target.checked), this.needs.state.changed("rows")),
            }),
            el("span", { class: "lm-letter", "aria-hidden": "true" }, letter),
            this.name(row, item, letter),
            slider,
            box,
            el("div", { class: "lm-row-tools" }, ...this.tools(row, index, letter, fold)),
            el(
                "div",
                { class: "lm-row-facts" },
                item
                    ? badges(item)
                    : el("span", { class: "lm-dim" }, row.name ? "not in the LoRA folders" : ""),
                this.elements(row, letter),
            ),
            fold,
            item && item.problem ? el("div", { class: "lm-problem" }, item.problem) : null,
        );
        return view;
    }

    name(row, item, letter) {
        const text = item ? item.name : row.name ? `${row.name} (missing)` : "Pick a LoRA …";
        const picture =
            item && item.preview ? el("img", { src: item.preview, alt: "", class: "lm-thumb" }) : null;
        const pick = button([picture, el("bdi", {}, text)], () => this.pick(row), {
            class: `lm-button lm-name${item || !row.name ? "" : " lm-missing"}`,
            title: item ? `${item.folder ? `${item.folder}/` : ""}${item.name}` : text,
            "aria-haspopup": "dialog",
            "aria-label": `${letter}: ${text}`,
        });
        return pick;
    }

    tools(row, index, letter, fold) {
        const group = row.group && this.data.groups[row.group];
        const { roles } =
            (group && this.needs.catalog.titles[group.method]) ||
            this.needs.catalog.method(this.needs.state.data.method);
        const change = (field, what) => (value) => ((row[field] = value), this.needs.state.changed(what));
        const te = button(
            "TE",
            () => ((fold.hidden = !fold.hidden), te.setAttribute("aria-expanded", String(!fold.hidden))),
            {
                title: "Ratio for the text encoder",
                "aria-label": `Text-encoder ratio of ${letter}`,
                "aria-expanded": String(!fold.hidden),
                class: `${small}${row.te ? " lm-set" : ""}`,
            },
        );
        return [
            roles.length
                ? select(
                      [["", "role –"], ...roles.map((role) => [role, role])],
                      row.role,
                      change("role", "value"),
                      { "aria-label": `Role of ${letter}`, title: "What this LoRA is for" },
                  )
                : null,
            select(
                [["", "no group"], ...groupsOf(this.data.sources).map((group) => [group, `group ${group}`])],
                row.group,
                change("group", "rows"),
                {
                    "aria-label": `Group of ${letter}`,
                    title: "Sources of one group are merged first, by a method of their own",
                },
            ),
            te,
            button("↑", () => this.move(row, -1), {
                "aria-label": `Move ${letter} up`,
                title: "Move up",
                class: small,
                disabled: index === 0,
            }),
            button("↓", () => this.move(row, 1), {
                "aria-label": `Move ${letter} down`,
                title: "Move down",
                class: small,
                disabled: index === this.data.sources.length - 1,
            }),
            button("✕", () => this.needs.state.remove(row), {
                "aria-label": `Remove ${letter}`,
                title: "Remove",
                class: small,
            }),
        ];
    }

    elements(row, letter) {
        if (!row.elements) return null;
        const drop = () => ((row.elements = ""), this.needs.state.changed("rows"));
        return el(
            "span",
            {
                class: "lm-badge lm-rules",
                title: `Element rules, which replace block weights: ${row.elements}`,
            },
            el(
                "bdi",
                {},
                `rules ${row.elements.length > 40 ? `${row.elements.slice(0, 40)}…` : row.elements} `,
            ),
            button("✕", drop, { class: "lm-plain", "aria-label": `Drop the element rules of ${letter}` }),
        );
    }

    encoders(row, item, letter) {
        const names = ((item && this.needs.catalog.families[item.family]) || {}).te_ratios || [
            "text encoder",
        ];
        /* one number, as a tag or a recipe has it, is for all */
        if (names.length > 1 && row.te && row.te.length === 1) row.te = names.map(() => row.te[0]);
        const box = el("div", { class: "lm-line lm-fold", hidden: !row.te });
        box.append(
            ...names.map((name, index) => {
                const field = el("input", {
                    type: "number",
                    step: 0.05,
                    class: "lm-number",
                    placeholder: "= ratio",
                    value:
                        row.te && row.te[index] !== null && row.te[index] !== undefined ? row.te[index] : "",
                    "aria-label": `${name} ratio of ${letter}`,
                    oninput: () => {
                        const te = row.te ? [...row.te] : names.map(() => null);
                        te[index] = field.value === "" ? null : Number.parseFloat(field.value);
                        row.te = te.every((value) => value === null) ? null : te;
                        this.needs.state.changed("value", field);
                    },
                });
                return el("label", {}, `${name} `, field);
            }),
            el(
                "span",
                { class: "lm-dim" },
                item && !item.te
                    ? "this LoRA has no text encoder"
                    : "replaces the ratio for the text encoder; empty = the same",
            ),
        );
        return box;
    }

    /* a text encoder alone fits several base models: then, and only then, it is asked for */
    renderBase() {
        const items = this.needs.state
            .used()
            .map((row) => this.needs.library.item(row.key))
            .filter(Boolean);
        const open =
            items.length > 0 && items.every((item) => !item.family && (item.candidates || []).length > 1);
        this.base.hidden = !open;
        if (!open) return void (this.data.family = "");
        const choices = [["", "choose …"], ...items[0].candidates.map((name) => [name, name])];
        const choose = select(
            choices,
            this.data.family || "",
            (value) => ((this.data.family = value), this.needs.state.changed("rows")),
            { "aria-label": "Base model" },
        );
        this.base.replaceChildren(
            el("label", {}, "Base model ", choose),
            el("span", { class: "lm-dim" }, "these files fit several"),
        );
        return undefined;
    }

    update(origin) {
        for (const view of this.views) {
            if (view.slider !== origin) view.slider.value = view.row.ratio;
            view.slider.mark();
            if (view.box !== origin) view.box.value = numberText(view.row.ratio);
        }
        const sum = this.needs.state.used().reduce((total, row) => total + row.ratio, 0);
        this.sum.textContent = `Σ ${sum.toFixed(2)}`;
    }

    add() {
        const row = this.data.sources.find((found) => !found.key) || this.needs.state.add({ ratio: 0.5 });
        this.pick(row);
    }

    pick(row) {
        const view = this.views.find((found) => found.row === row);
        if (!view) return;
        const choose = (item) => {
            row.key = item.key;
            row.name = item.name;
            this.needs.state.data.output.triggers = null;
            this.needs.state.changed("rows");
            this.focus(row, ".lm-name");
        };
        this.picker.open(view.box.querySelector(".lm-name"), view.box, choose, {
            current: row.key,
            family: this.needs.library.family(row),
        });
    }

    focus(row, selector) {
        const view = this.views.find((found) => found.row === row);
        const node = view && view.box.querySelector(selector);
        if (node) node.focus({ preventScroll: true });
    }

    /* the focus goes with the row, so that pressing again moves it further */
    move(row, step) {
        this.needs.state.move(row, step);
        const to = this.data.sources.indexOf(row);
        const end = step < 0 ? to === 0 : to === this.data.sources.length - 1;
        this.focus(row, `[aria-label="Move ${letterOf(to)} ${step < 0 !== end ? "up" : "down"}"]`);
    }

    /* the mark that keeps a row's ratio as it is, as a speed LoRA's does */
    held(row) {
        return ((this.needs.library.item(row.key) || {}).marks || []).find((mark) => mark.holds);
    }

    /* set the ratios of all these rows but of those that keep theirs, and say which these are */
    set(rows, work) {
        const kept = rows.filter((row) => this.held(row));
        const free = rows.filter((row) => !this.held(row));
        if (free.length) this.needs.state.once(() => work(free));
        if (kept.length)
            this.needs.say(
                kept
                    .map(
                        (row) =>
                            `${letterOf(this.data.sources.indexOf(row))} keeps its ratio: ` +
                            `${this.held(row).said}.`,
                    )
                    .join(" "),
            );
    }

    spread(share) {
        const rows = this.data.sources.filter(
            (row) => row.on && (row.key || !this.needs.state.used().length),
        );
        this.set(rows, (free) =>
            free.forEach((row, index) => (row.ratio = Math.round(share(free.length, index) * 1000) / 1000)),
        );
    }

    lead() {
        this.spread((count, index) => (index ? 0.3 / Math.max(1, count - 1) : count > 1 ? 0.7 : 1));
    }

    normalise() {
        const rows = this.needs.state.used();
        const sum = rows.filter((row) => !this.held(row)).reduce((total, row) => total + row.ratio, 0);
        if (!sum && !rows.every((row) => this.held(row)))
            return this.needs.say("The ratios add up to 0, so they cannot be scaled to 1.");
        return this.set(rows, (free) =>
            free.forEach((row) => (row.ratio = Math.round((row.ratio / sum) * 1000) / 1000)),
        );
    }

    setAll() {
        const value = this.every.valueAsNumber;
        if (!Number.isFinite(value)) return void this.every.focus();
        return this.set(this.data.sources, (free) => free.forEach((row) => (row.ratio = value)));
    }
}
