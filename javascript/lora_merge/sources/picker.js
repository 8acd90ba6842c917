/* Choosing among thousands of LoRAs: a search field and a list that draws only what is in view. */

import { button, el, fillSelect, select } from "../core/dom.js";
import { badges, markText } from "./badges.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "library">} PickerNeeds
 */

const HEIGHT = 46;

const MOST_TAGS = 4;

const COLLATOR = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/* folder and the words that most of its captions have */
const about = (item) =>
    [item.folder, (item.tags || []).slice(0, MOST_TAGS).join(", ")].filter(Boolean).join(" · ");

/**
 * What a search finds a LoRA by, in small letters.
 * @param {import("../types.js").Item} item
 */
export const searchText = (item) =>
    [
        `${item.folder}/${item.name} ${item.alias} ${item.family}`,
        ...(item.kinds || []),
        ...(item.marks || []).map(markText),
        ...(item.tags || []),
    ]
        .join(" ")
        .toLowerCase();

export class Picker {
    /**
     * @param {PickerNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.folder = "";
        this.active = 0;
        this.shown = [];
        this.search = el("input", {
            type: "search",
            placeholder: "Search by name, folder, trigger word …",
            "aria-label": "Search LoRAs",
            role: "combobox",
            "aria-expanded": "true",
            "aria-controls": "lora_merge_picker_list",
            oninput: () => this.filter(false),
            onkeydown: (event) => this.key(event),
        });
        this.folders = select([["", "All folders"]], "", (value) => ((this.folder = value), this.filter()), {
            "aria-label": "Folder",
        });
        this.count = el("span", { class: "lm-dim", "aria-live": "polite" });
        this.canvas = el("div", { class: "lm-picker-canvas" });
        this.list = el(
            "div",
            {
                class: "lm-picker-list",
                id: "lora_merge_picker_list",
                role: "listbox",
                tabindex: -1,
                onscroll: () => this.draw(),
            },
            this.canvas,
        );
        this.box = el(
            "div",
            {
                class: "lm-picker",
                role: "dialog",
                "aria-label": "Pick a LoRA",
                hidden: true,
                onkeydown: (event) => event.key === "Escape" && (this.close(), event.stopPropagation()),
                onfocusout: (event) =>
                    event.relatedTarget && !this.box.contains(event.relatedTarget) && this.close(true),
            },
            el(
                "div",
                { class: "lm-line" },
                this.search,
                this.folders,
                button("⟳", () => needs.library.refresh(true), {
                    title: "Look at the folders again",
                    "aria-label": "Refresh the list",
                }),
                button("✕", () => this.close(), { title: "Close (Escape)", "aria-label": "Close" }),
            ),
            this.list,
            this.count,
        );
        document.addEventListener(
            "pointerdown",
            (event) =>
                !this.box.hidden &&
                !this.box.contains(event.target) &&
                event.target !== this.anchor &&
                this.close(true),
        );
    }

    /* over the page, below the button it belongs to, so that nothing moves; `choose` is called with the
       item */
    open(anchor, place, choose, { current, family }) {
        const again = !this.box.hidden && this.anchor === anchor;
        this.close(true);
        if (again) return;
        this.anchor = anchor;
        this.chosen = choose;
        this.family = family;
        place.append(this.box);
        this.box.hidden = false;
        const folders = [...new Set(this.needs.library.items.map((item) => item.folder))].sort();
        fillSelect(
            this.folders,
            [["", "All folders"], ...folders.filter(Boolean).map((name) => [name, name])],
            folders.includes(this.folder) ? this.folder : "",
        );
        this.folder = this.folders.value;
        this.search.value = "";
        this.filter();
        const at = this.shown.findIndex((item) => item.key === current);
        if (at >= 0) this.go(at);
        this.search.focus({ preventScroll: true });
        /* files that came since are there without a press on ⟳ */
        this.needs.library.refresh(true);
        this.box.scrollIntoView({ block: "nearest" });
    }

    close(quiet) {
        if (this.box.hidden) return;
        this.box.hidden = true;
        if (!quiet && this.anchor && this.anchor.isConnected) this.anchor.focus({ preventScroll: true });
    }

    /* looked up once per list, so that typing stays quick among thousands */
    texts() {
        if (this.read !== this.needs.library.items) {
            this.read = this.needs.library.items;
            this.lower = new Map(this.read.map((item) => [item, searchText(item)]));
            this.order = [...this.read].sort((a, b) => COLLATOR.compare(a.name, b.name));
        }
        return this.lower;
    }

    /* `still`: more of the list has come; what is chosen stays in sight */
    filter(still) {
        const before = still && this.shown[this.active];
        const top = this.list.scrollTop;
        const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
        const { family } = this;
        const texts = this.texts();
        const typed = this.search.value.trim().toLowerCase();
        const near = (item) => {
            const names = [item.name.toLowerCase(), item.alias.toLowerCase()];
            return names.includes(typed)
                ? 0
                : names.some((name) => name.startsWith(typed))
                  ? 1
                  : names.some((name) => name.includes(typed))
                    ? 2
                    : 3;
        };
        const fits = (item) =>
            !item.problem && (!family || item.family === family || (item.candidates || []).includes(family));
        /* those that can be merged with what is there come first, then those whose name begins with what
           was typed */
        const places = new Map();
        for (const item of this.order) {
            if (this.folder && item.folder !== this.folder && !item.folder.startsWith(`${this.folder}/`))
                continue;
            if (words.every((word) => texts.get(item).includes(word)))
                places.set(item, (fits(item) ? 0 : 10) + (typed ? near(item) : 0));
        }
        this.shown = [...places.keys()].sort((a, b) => places.get(a) - places.get(b));
        this.active = before
            ? Math.max(
                  0,
                  this.shown.findIndex((item) => item.key === before.key),
              )
            : 0;
        this.list.scrollTop = still ? top : 0;
        const { done, total } = this.needs.library.scan;
        this.count.textContent =
            `${this.shown.length} of ${this.needs.library.items.length} LoRAs` +
            (done < total ? ` · reading headers, ${done} of ${total}` : "") +
            (family ? ` · ${family} first, as the other sources` : "");
        this.draw();
    }

    draw() {
        const first = Math.max(0, Math.floor(this.list.scrollTop / HEIGHT) - 2);
        const last = Math.min(
            this.shown.length,
            first + Math.ceil((this.list.clientHeight || 320) / HEIGHT) + 5,
        );
        this.canvas.style.height = `${this.shown.length * HEIGHT}px`;
        const { family } = this;
        this.canvas.replaceChildren(
            ...this.shown.slice(first, last).map((item, offset) => {
                const index = first + offset;
                const active = index === this.active ? " lm-active" : "";
                const other = family && item.family && item.family !== family;
                return el(
                    "div",
                    {
                        class: `lm-pick${active}${other || item.problem ? " lm-other" : ""}`,
                        role: "option",
                        id: `lora_merge_pick_${index}`,
                        "aria-selected": index === this.active,
                        style: `top:${index * HEIGHT}px`,
                        onclick: () => this.choose(item),
                    },
                    item.preview
                        ? el("img", { src: item.preview, alt: "", loading: "lazy" })
                        : el("span", { class: "lm-noimage", "aria-hidden": "true" }),
                    el(
                        "span",
                        { class: "lm-pick-name" },
                        el("bdi", {}, item.name),
                        el("small", {}, el("bdi", {}, item.problem || about(item))),
                    ),
                    badges(item),
                );
            }),
        );
        if (!this.shown.length)
            this.canvas.replaceChildren(
                el(
                    "p",
                    { class: "lm-dim lm-none" },
                    this.needs.library.items.length
                        ? "No LoRA fits. Fewer letters, or another folder?"
                        : "There are no LoRAs in the LoRA folders yet; ⟳ looks again.",
                ),
            );
        this.search.setAttribute(
            "aria-activedescendant",
            this.shown.length ? `lora_merge_pick_${this.active}` : "",
        );
    }

    go(index) {
        this.active = Math.max(0, Math.min(this.shown.length - 1, index));
        const top = this.active * HEIGHT;
        if (top < this.list.scrollTop) this.list.scrollTop = top;
        if (top + HEIGHT > this.list.scrollTop + this.list.clientHeight)
            this.list.scrollTop = top + HEIGHT - this.list.clientHeight;
        this.draw();
    }

    key(event) {
        const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 6, PageUp: -6 }[event.key];
        if (step) this.go(this.active + step);
        else if (event.key === "Enter" && this.shown[this.active]) this.choose(this.shown[this.active]);
        else if (event.key === "Escape") this.close();
        else return;
        event.preventDefault();
        event.stopPropagation();
    }

    choose(item) {
        this.close();
        this.chosen(item);
    }
}
