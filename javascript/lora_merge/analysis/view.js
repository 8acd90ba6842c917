/* What the parts of the analysis know: the report, and what its LoRAs are called in the tab. */

import { el } from "../core/dom.js";
import { colourOf, letterOf } from "../core/letters.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "change" | "state" | "catalog" | "grid" | "say">}
 *   ViewNeeds
 */

export class View {
    /**
     * @param {ViewNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        /** @type {any} what was measured; null where nothing is */
        this.report = null;
        /** @type {number | null} the job that measured it */
        this.job = null;
    }

    place(index) {
        const id = this.report.rows[index];
        const found = this.needs.state.data.sources.findIndex((row) => row.id === id);
        return found < 0 ? index : found;
    }

    letter(index) {
        return letterOf(this.place(index));
    }

    chip(index) {
        return el(
            "span",
            { class: "lm-letter", style: `--lm-colour:${colourOf(this.place(index))}` },
            this.letter(index),
        );
    }

    name(index) {
        const source = this.report.sources[index];
        return source ? `${this.letter(index)} ${source.label}` : this.letter(index);
    }

    async apply(item) {
        await this.needs.change(item.title, item.apply);
    }
}
