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
        /* rows whose rarer settings are open, by their number */
        this.opened = new Set();
        this.rows = el("div", { class: "lm-rows" });
        this.next = el("p", { class: "lm-dim lm-next-step" });
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
        this.ratios = this.ratioTools();
        this.box = el(
            "section",
            { class: "lm-card", "aria-label": "Sources" },
            this.head(),
            this.prompt.box,
            this.rows,
            el("div", { class: "lm-below-rows" }, this.next, this.ratios),
            this.base,
            this.groups.box,
        );
        this.picker = new Picker(needs);
        needs.state.listen((what, origin) => (what === "rows" ? this.render() : this.update(origin)));
        this.render();
    }

    head() {
        const { state, library } = this.needs;
        const icon = (sign, name, title, work) =>
            button(sign, work, { class: `${small} lm-icon`, "aria-label": name, title });
        this.copy = button("Copy as prompt", () => this.prompt.copy(), {
            class: small,
            title: "The sources as <lora:…> tags",
        });
        return el(
            "div",
            { class: "lm-line lm-head" },
            el("h3", {}, "Sources"),
            icon("↶", "Undo", "Undo (Ctrl+Z)", () => state.undo()),
            icon("↷", "Redo", "Redo (Ctrl+Y)", () => state.redo()),
            el("span", { class: "lm-grow" }),
            button("+ Add source", () => this.add(), { class: small }),
            button("From prompt or image…", () => this.prompt.toggle(), { class: small }),
            this.copy,
            button("Refresh", () => library.refresh(true), {
                class: small,
                title: "Look at the LoRA folders again",
            }),
        );
    }

    ratioTools() {
        return el(
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
        );
    }

    get data() {
        return this.needs.state.data;
    }

    render() {
        this.picker.close(true);
        this.views = this.data.sources.map((row, index) => this.view(row, index));
        this.rows.replaceChildren(...this.views.map((view) => view.box));
        this.groups.render();
        this.renderBase();
        const picked = this.data.sources.filter((row) => row.key).length;
        this.copy.hidden = !picked;
        this.ratios.hidden = picked < 2;
        this.next.hidden = picked > 1;
        this.next.textContent = !this.data.sources.length
            ? "No sources. Add one, or read them from a prompt."
            : picked
              ? "Pick a second LoRA to merge with it."
              : "Pick two LoRAs, say how strong each should be, and press Merge.";
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
        const fold = this.fold(row, index, letter, item);
        const view = { row, slider, box };
        const empty = !row.key && !row.name;
        view.box = el(
            "div",
            {
                class: `lm-row${row.on ? "" : " lm-off"}${empty ? " lm-unpicked" : ""}`,
                style: `--lm-colour:${colourOf(index)}`,
                role: "group",
                "aria-label": `Source ${letter}`,
            },
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
            el("div", { class: "lm-row-tools" }, ...this.tools(row, letter, fold)),
            el(
                "div",
                { class: "lm-row-facts" },
                item
                    ? badges(item)
                    : el("span", { class: "lm-dim" }, row.name ? "not in the LoRA folders" : ""),
                ...this.settings(row, letter),
            ),
            fold,
            item && item.problem ? el("div", { class: "lm-problem" }, item.problem) : null,
        );
        return view;
    }

    name(row, item, letter) {
        const text = item ? item.name : row.name ? `${row.name} (missing)` : "Pick a LoRA";
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

    tools(row, letter, fold) {
        const group = row.group && this.data.groups[row.group];
        const { roles } =
            (group && this.needs.catalog.titles[group.method]) ||
            this.needs.catalog.method(this.needs.state.data.method);
        const more = button(
            "⋯",
            () => {
                fold.hidden = !fold.hidden;
                more.setAttribute("aria-expanded", String(!fold.hidden));
                this.opened[fold.hidden ? "delete" : "add"](row.id);
            },
            {
                "aria-label": `More of ${letter}`,
                title: "Text encoder strength, group, order",
                "aria-expanded": String(!fold.hidden),
                class: `${small} lm-icon`,
            },
        );
        return [
            roles.length
                ? select(
                      [["", "role –"], ...roles.map((role) => [role, role])],
                      row.role,
                      (value) => ((row.role = value), this.needs.state.changed("value")),
                      { "aria-label": `Role of ${letter}`, title: "What this LoRA is for" },
                  )
                : null,
            more,
            button("✕", () => this.needs.state.remove(row), {
                "aria-label": `Remove ${letter}`,
                title: "Remove",
                class: `${small} lm-icon`,
            }),
        ];
    }

    /* what is set behind "⋯", so that nothing acts unseen */
    settings(row, letter) {
        const te = /** @type {(number | null)[] | null} */ (row.te);
        const own = te ? te.filter((value) => value !== null) : [];
        return [
            row.group ? el("span", { class: "lm-badge lm-mark" }, `group ${row.group}`) : null,
            own.length
                ? el(
                      "span",
                      { class: "lm-badge lm-mark" },
                      `text encoder at ${own.map(numberText).join(", ")}`,
                  )
                : null,
            this.elements(row, letter),
        ];
    }

    /* what few need, behind "⋯" of the row */
    fold(row, index, letter, item) {
        return el(
            "div",
            { class: "lm-line lm-fold lm-row-more", hidden: !this.opened.has(row.id) },
            ...this.encoders(row, item, letter),
            el(
                "label",
                { title: "Sources of one group are merged first, by a method of their own" },
                "Group ",
                select(
                    [["", "none"], ...groupsOf(this.data.sources).map((group) => [group, `group ${group}`])],
                    row.group,
                    (value) => ((row.group = value), this.needs.state.changed("rows")),
                    { "aria-label": `Group of ${letter}` },
                ),
            ),
            el("span", { class: "lm-grow" }),
            button("↑", () => this.move(row, -1), {
                "aria-label": `Move ${letter} up`,
                title: "Move up",
                class: `${small} lm-icon`,
                disabled: index === 0,
            }),
            button("↓", () => this.move(row, 1), {
                "aria-label": `Move ${letter} down`,
                title: "Move down",
                class: `${small} lm-icon`,
                disabled: index === this.data.sources.length - 1,
            }),
        );
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

    /* a field for each text encoder that the model has; none for a LoRA that changes none */
    encoders(row, item, letter) {
        if (item && !item.te && !row.te) return [];
        const names = ((item && this.needs.catalog.families[item.family]) || {}).te_ratios || [
            "text encoder",
        ];
        /* one number, as a tag or a recipe has it, is for all */
        if (names.length > 1 && row.te && row.te.length === 1) row.te = names.map(() => row.te[0]);
        return names.map((name, index) => {
            const field = el("input", {
                type: "number",
                step: 0.05,
                class: "lm-number",
                placeholder: "as ratio",
                value: row.te && row.te[index] !== null && row.te[index] !== undefined ? row.te[index] : "",
                "aria-label": `${name} ratio of ${letter}`,
                oninput: () => {
                    const te = row.te ? [...row.te] : names.map(() => null);
                    te[index] = field.value === "" ? null : Number.parseFloat(field.value);
                    row.te = te.every((value) => value === null) ? null : te;
                    this.needs.state.changed("value", field);
                },
            });
            return el(
                "label",
                { title: "Replaces the ratio for the text encoder; empty: the same" },
                `${/encoder/i.test(name) ? name[0].toUpperCase() + name.slice(1) : name} strength `,
                field,
            );
        });
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
