/* Panels behind a strip of tabs: each is made when it is first opened, and stays as it was left. */

import { button, el } from "./dom.js";

/** @typedef {{name: string, hint: string, make: () => HTMLElement, shown?: () => void}} Panel */

export class Panels {
    /**
     * @param {string} label of the whole, for those who hear it
     * @param {Panel[]} panels in the order of the strip
     */
    constructor(label, panels) {
        this.panels = panels;
        this.name = "";
        this.tabs = panels.map(({ name, hint }) =>
            button(name, () => this.show(name), {
                role: "tab",
                id: `lora_merge_tab_${name}`,
                "aria-controls": `lora_merge_pane_${name}`,
                title: hint,
                class: "lm-tab",
            }),
        );
        this.panes = panels.map(({ name }) =>
            el("div", {
                role: "tabpanel",
                id: `lora_merge_pane_${name}`,
                "aria-labelledby": `lora_merge_tab_${name}`,
                class: "lm-pane",
                hidden: true,
            }),
        );
        this.strip = el(
            "div",
            { class: "lm-tabs", role: "tablist", "aria-label": label, onkeydown: (event) => this.key(event) },
            ...this.tabs,
        );
        this.box = el("section", { class: "lm-card lm-see", "aria-label": label }, this.strip, ...this.panes);
        this.show(panels[0].name);
    }

    /** @param {string} name of the panel to show */
    show(name) {
        const again = this.name === name;
        this.name = name;
        this.panels.forEach((panel, index) => {
            const here = panel.name === name;
            this.tabs[index].setAttribute("aria-selected", String(here));
            this.tabs[index].tabIndex = here ? 0 : -1;
            this.tabs[index].classList.toggle("lm-active", here);
            this.panes[index].hidden = !here;
            if (!here) return;
            if (!this.panes[index].firstChild) this.panes[index].append(panel.make());
            if (!again && panel.shown) panel.shown();
        });
    }

    key(event) {
        const at = this.panels.findIndex((panel) => panel.name === this.name);
        const last = this.panels.length - 1;
        const to = {
            ArrowRight: at === last ? 0 : at + 1,
            ArrowLeft: at === 0 ? last : at - 1,
            Home: 0,
            End: last,
        }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        this.show(this.panels[to].name);
        this.tabs[to].focus();
    }
}
