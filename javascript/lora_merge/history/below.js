/* The panels beside the merge: what was merged, two merges side by side, recipes, presets, and tools. */

import { el } from "../core/dom.js";
import { CompareRecipes } from "./compare.js";
import { History } from "./history.js";
import { Presets } from "./presets.js";
import { drawRecipes } from "./recipes.js";
import { Tools } from "./tools.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "see">
 *   & import("./compare.js").CompareNeeds
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
                needs.see("Compare");
                this.compared.choose(entry);
            },
        });
        /** @type {Record<string, HTMLElement>} */
        this.places = {};
        this.panel = el("div", { class: "lm-panel" });
        this.name = "";
    }

    /**
     * The place where one of them is drawn: what is drawn goes where it is looked at.
     * @param {string} name of a panel
     * @returns {HTMLElement}
     */
    place(name) {
        return (this.places[name] = el("div", { class: "lm-place" }));
    }

    /** @param {string} name of a panel, which has its place */
    show(name) {
        this.name = name;
        if (this.panel.parentElement !== this.places[name]) this.places[name].append(this.panel);
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
        this.needs.see("Presets");
        this.presets.choose(row);
    }

    /**
     * Open the validation of a merge.
     * @param {string} entry of the history
     */
    validate(entry) {
        this.needs.see("History");
        return this.history.openValidation(entry);
    }
}
