/* Under which name and with what beside it a merge is saved: the name in the bar, the rest in a drawer above
   it. */

import { button, el, select } from "../core/dom.js";
import { Details } from "./details.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "state"> & import("./details.js").DetailsNeeds} SavingNeeds
 */

export class Saving {
    /**
     * @param {SavingNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.details = new Details(needs);
        const field = (name, label, attributes, tag = "input") =>
            el(tag, {
                type: tag === "input" ? "text" : undefined,
                "aria-label": label,
                oninput: (event) => this.set(name, event.target.value),
                ...attributes,
            });
        this.template = field("template", "Name of the merge", {
            spellcheck: "false",
            title: "{sources} {method} {weights} {rank} and {n}, which counts up, are filled in",
        });
        this.folder = field("folder", "Sub-folder", { placeholder: "the LoRA folder itself" });
        this.triggers = field("triggers", "Trigger words");
        this.notes = field("notes", "Notes", { rows: 2 }, "textarea");
        this.overwrite = el("input", {
            type: "checkbox",
            onchange: () => this.set("overwrite", this.overwrite.checked),
        });
        this.precision = select(
            [
                ["fp16", "fp16, as nearly all LoRAs"],
                ["bf16", "bf16"],
                ["float", "float32, twice as large"],
            ],
            "fp16",
            (value) => ((needs.state.data.precision = value), needs.state.changed("value")),
            { "aria-label": "Precision" },
        );
        this.chips = el("span", { class: "lm-chips", hidden: true });
        this.box = el(
            "section",
            { class: "lm-save", hidden: true, id: "lora_merge_save", "aria-label": "Save options" },
            this.fields(),
        );
        this.toggle = button("Save options", () => this.open(this.box.hidden), {
            "aria-expanded": "false",
            "aria-controls": "lora_merge_save",
            title: "Folder, trigger words, notes, preview picture, precision",
        });
        this.box.addEventListener("keydown", (event) => {
            if (event.key !== "Escape") return;
            event.stopPropagation();
            this.open(false);
            this.toggle.focus();
        });
    }

    fields() {
        return el(
            "div",
            { class: "lm-fields" },
            el(
                "label",
                { title: "Below the LoRA folder; made if it is not there" },
                el("span", {}, "Folder"),
                this.folder,
            ),
            el("label", {}, el("span", {}, "Precision"), this.precision),
            el("label", { class: "lm-line lm-check" }, this.overwrite, "Overwrite"),
            el(
                "label",
                {
                    class: "lm-double",
                    title: "Written beside the file: the WebUI adds them to the prompt with the card",
                },
                el("span", {}, "Trigger words"),
                this.triggers,
                this.chips,
            ),
            el("label", { class: "lm-double" }, el("span", {}, "Notes"), this.notes),
            this.details.based_on,
            this.details.preview,
        );
    }

    get data() {
        return this.needs.state.data;
    }

    /** @param {boolean} yes whether the drawer is to be open */
    open(yes) {
        this.box.hidden = !yes;
        this.toggle.setAttribute("aria-expanded", String(yes));
    }

    set(name, value) {
        this.data.output[name] = value;
        this.needs.state.changed("value", this[name]);
    }

    update(origin) {
        const { output } = this.data;
        for (const name of ["template", "folder", "notes"])
            if (this[name] !== origin && this[name] !== document.activeElement)
                this[name].value = output[name] || "";
        if (output.triggers !== null && this.triggers !== origin) this.triggers.value = output.triggers;
        this.overwrite.checked = output.overwrite;
        this.precision.value = this.data.precision;
        const { defaults } = this.data;
        const set =
            output.overwrite ||
            output.notes ||
            output.folder !== defaults.folder ||
            this.data.precision !== defaults.precision;
        this.toggle.classList.toggle("lm-set", Boolean(set));
    }

    /** @param {import("../types.js").Outlook} plan */
    show(plan) {
        if (this.data.output.triggers === null && this.triggers !== document.activeElement)
            this.triggers.value = plan.triggers;
        this.details.show(plan.changes || []);
    }
}
