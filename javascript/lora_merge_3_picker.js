"use strict";

/* Choosing among thousands of LoRAs: a search field and a list that draws only what is in view. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el } = space;
    const HEIGHT = 46;

    class Picker {
        constructor(app) {
            this.app = app;
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
                oninput: () => this.filter(),
                onkeydown: (event) => this.key(event),
            });
            this.folders = space.select([["", "All folders"]], "", (value) => ((this.folder = value), this.filter()), {
                "aria-label": "Folder",
            });
            this.count = el("span", { class: "lm-dim", "aria-live": "polite" });
            this.canvas = el("div", { class: "lm-picker-canvas" });
            this.list = el("div", { class: "lm-picker-list", id: "lora_merge_picker_list", role: "listbox", tabindex: -1, onscroll: () => this.draw() }, this.canvas);
            this.box = el(
                "div",
                { class: "lm-picker", role: "dialog", "aria-label": "Pick a LoRA", hidden: true, onkeydown: (event) => event.key === "Escape" && this.close() },
                el(
                    "div",
                    { class: "lm-line" },
                    this.search,
                    this.folders,
                    space.button("⟳", () => app.refreshLibrary(true), { title: "Look at the folders again", "aria-label": "Refresh the list" }),
                    space.button("✕", () => this.close(), { title: "Close", "aria-label": "Close" }),
                ),
                this.count,
                this.list,
            );
        }

        open(row, anchor) {
            this.row = row;
            this.anchor = anchor;
            this.box.hidden = false;
            anchor.closest(".lm-row").after(this.box);
            const folders = [...new Set(this.app.items.map((item) => item.folder))].sort();
            space.fill(this.folders, [["", "All folders"], ...folders.filter(Boolean).map((name) => [name, name])], this.folder);
            this.search.value = "";
            this.filter();
            this.search.focus();
        }

        close() {
            if (this.box.hidden) return;
            this.box.hidden = true;
            if (this.anchor && this.anchor.isConnected) this.anchor.focus();
        }

        filter() {
            const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
            const family = this.app.family();
            const fits = (item) => !family || item.family === family || (item.candidates || []).includes(family);
            this.shown = this.app.items.filter((item) => {
                if (this.folder && item.folder !== this.folder && !item.folder.startsWith(`${this.folder}/`)) return false;
                const text = `${item.folder}/${item.name} ${item.alias} ${item.family} ${(item.tags || []).join(" ")}`.toLowerCase();
                return words.every((word) => text.includes(word));
            });
            /* those that can be merged with what is there come first, then those whose name begins with what was typed */
            const typed = this.search.value.trim().toLowerCase();
            const near = (item) => (typed ? [item.name, item.alias].map((name) => (name.toLowerCase() === typed ? 0 : name.toLowerCase().startsWith(typed) ? 1 : name.toLowerCase().includes(typed) ? 2 : 3)).sort()[0] : 0);
            this.shown.sort((a, b) => Number(fits(b)) - Number(fits(a)) || near(a) - near(b) || a.name.localeCompare(b.name));
            this.active = 0;
            this.list.scrollTop = 0;
            const { done, total } = this.app.scan;
            this.count.textContent = `${this.shown.length} of ${this.app.items.length} LoRAs` + (done < total ? ` · reading headers ${done} of ${total}` : "");
            this.draw();
        }

        draw() {
            const first = Math.max(0, Math.floor(this.list.scrollTop / HEIGHT) - 2);
            const last = Math.min(this.shown.length, first + Math.ceil((this.list.clientHeight || 320) / HEIGHT) + 5);
            this.canvas.style.height = `${this.shown.length * HEIGHT}px`;
            const family = this.app.family();
            this.canvas.replaceChildren(
                ...this.shown.slice(first, last).map((item, offset) => {
                    const index = first + offset;
                    const other = family && item.family && item.family !== family;
                    return el(
                        "div",
                        {
                            class: `lm-pick${index === this.active ? " lm-active" : ""}${other || item.problem ? " lm-other" : ""}`,
                            role: "option",
                            id: `lora_merge_pick_${index}`,
                            "aria-selected": index === this.active,
                            style: `top:${index * HEIGHT}px`,
                            onclick: () => this.choose(item),
                        },
                        item.preview ? el("img", { src: item.preview, alt: "", loading: "lazy" }) : el("span", { class: "lm-noimage", "aria-hidden": "true" }),
                        el("span", { class: "lm-pick-name" }, el("bdi", {}, item.name), el("small", {}, el("bdi", {}, item.problem || item.folder))),
                        space.badges(item),
                    );
                }),
            );
            this.search.setAttribute("aria-activedescendant", `lora_merge_pick_${this.active}`);
        }

        key(event) {
            const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 6, PageUp: -6 }[event.key];
            if (step) {
                this.active = Math.max(0, Math.min(this.shown.length - 1, this.active + step));
                const top = this.active * HEIGHT;
                if (top < this.list.scrollTop) this.list.scrollTop = top;
                if (top + HEIGHT > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + HEIGHT - this.list.clientHeight;
                this.draw();
            } else if (event.key === "Enter" && this.shown[this.active]) this.choose(this.shown[this.active]);
            else if (event.key === "Escape") this.close();
            else return;
            event.preventDefault();
            event.stopPropagation();
        }

        choose(item) {
            this.row.key = item.key;
            this.row.name = item.name;
            this.app.state.data.output.triggers = null;
            this.app.state.changed("rows");
            this.close();
            this.app.sources.focus(this.row);
        }
    }

    space.badges = (item) => {
        const rank = item.rank && item.rank[1] ? (item.rank[0] === item.rank[1] ? `r${item.rank[1]}` : `r${item.rank[0]}–${item.rank[1]}`) : "";
        const texts = [item.family || (item.candidates || []).join("/"), [(item.kinds || []).join("+"), rank].filter(Boolean).join(" "), item.size ? space.megabytes(item.size) : "", item.te ? "text encoder" : "", item.has_recipe ? "merged" : ""];
        return el("span", { class: "lm-badges" }, ...texts.filter(Boolean).map((text) => el("span", { class: "lm-badge" }, text)));
    };

    space.Picker = Picker;
})();
