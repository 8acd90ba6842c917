/* The panels beside the merge: what was merged, two merges side by side, recipes, presets, and tools. */

import { button, el } from "../core/dom.js";
import { CompareRecipes } from "./compare.js";
import { History } from "./history.js";
import { Presets } from "./presets.js";
import { drawRecipes } from "./recipes.js";
import { Tools } from "./tools.js";

/** What it takes.
 * @typedef {import("./compare.js").CompareNeeds
 *   & import("./history.js").HistoryNeeds
 *   & import("./presets.js").PresetsNeeds
 *   & import("./recipes.js").RecipesNeeds
 *   & import("./tools.js").ToolsNeeds} BelowNeeds
 */

export class Below {
    /**
     * @param {BelowNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.presets = new Presets(needs, () => this.name === "Presets");
        this.compared = new CompareRecipes(needs);
        this.history = new History(needs, {
            listed: (entries, labels) => this.compared.draw(entries, labels),
            compare: (entry) => {
                this.show("Compare");
                this.compared.choose(entry);
            },
        });
        this.tabs = ["History", "Compare", "Recipes", "Presets", "Tools"];
        this.list = el("div", { class: "lm-line lm-tabs", role: "tablist" });
        this.panel = el("div", { class: "lm-panel", role: "tabpanel" });
        this.box = el(
            "section",
            { class: "lm-card lm-panels", "aria-label": "History, presets, tools" },
            this.list,
            this.panel,
        );
        this.show("History");
    }

    /** @param {string} name of a panel */
    show(name) {
        this.name = name;
        const tabs = this.tabs.map((tab) =>
            button(tab, () => this.show(tab), {
                role: "tab",
                "aria-selected": String(tab === name),
                tabindex: tab === name ? 0 : -1,
                class: `lm-tab${tab === name ? " lm-active" : ""}`,
            }),
        );
        this.list.replaceChildren(...tabs);
        this.list.onkeydown = (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (!step) return;
            this.show(this.tabs[(this.tabs.indexOf(this.name) + step + this.tabs.length) % this.tabs.length]);
            this.list.querySelector(".lm-active").focus();
        };
        this[`draw${name}`]();
    }

    /** Draw what is shown anew: something was saved. */
    refresh() {
        if (this.name === "Compare") this.history.draw();
        else this[`draw${this.name}`]();
    }

    drawHistory() {
        this.hold(this.history.box);
        return this.history.draw();
    }

    drawCompare() {
        this.hold(this.compared.box);
        return this.history.draw();
    }

    drawRecipes() {
        return drawRecipes(this.needs, this.panel, () => this.name === "Recipes");
    }

    drawPresets() {
        this.presets.draw(this.panel);
    }

    drawTools() {
        this.tools = this.tools || new Tools(this.needs);
        this.hold(this.tools.box);
    }

    /* what is there already is not taken out and put back: that would take the keyboard away */
    hold(box) {
        if (this.panel.firstChild !== box || this.panel.childNodes.length > 1)
            this.panel.replaceChildren(box);
    }

    savePreset(row) {
        this.show("Presets");
        this.presets.choose(row);
    }

    /**
     * Open the validation of a merge.
     * @param {string} entry of the history
     */
    validate(entry) {
        this.show("History");
        return this.history.openValidation(entry);
    }
}
