/* Under which name and with what beside it a merge is saved: the name in the bar, the rest in a drawer above
   it. */

import { button, el, select } from "../core/dom.js";
import { Details } from "./details.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "request" | "state">
 *   & import("./details.js").DetailsNeeds} SavingNeeds
 */

/* of one LoRA */
const MOST_WORDS = 8;

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
                ["fp16", "fp16"],
                ["bf16", "bf16"],
                ["float", "float32"],
            ],
            "fp16",
            (value) => ((needs.state.data.precision = value), needs.state.changed("value")),
            { "aria-label": "Precision" },
        );
        this.chips = el("div", {
            class: "lm-words lm-double",
            role: "group",
            "aria-label": "Likely trigger words",
        });
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
            el(
                "label",
                { title: "fp16, as nearly all LoRAs are; float32 is twice as large" },
                el("span", {}, "Precision"),
                this.precision,
            ),
            el(
                "label",
                {
                    class: "lm-double",
                    title: "Written beside the file: the WebUI adds them to the prompt with the card",
                },
                el("span", {}, "Trigger words"),
                this.triggers,
            ),
            this.chips,
            el("label", { class: "lm-double" }, el("span", {}, "Notes"), this.notes),
            this.details.based_on,
            this.details.preview,
            el("label", { class: "lm-line lm-check" }, this.overwrite, "Overwrite"),
        );
    }

    get data() {
        return this.needs.state.data;
    }

    /** @param {boolean} yes whether the drawer is to be open */
    open(yes) {
        this.box.hidden = !yes;
        this.toggle.setAttribute("aria-expanded", String(yes));
        if (yes) this.offerWords();
    }

    /* words that the sources may answer to, the surest first; a press puts one in or takes it out */
    async offerWords() {
        const keys = [...new Set(this.needs.state.used().map((row) => row.key))];
        const asked = keys.join("\n");
        if (this.asked !== asked) {
            const reply = keys.length ? await this.needs.request("words", { keys }).catch(() => null) : null;
            this.asked = asked;
            const seen = new Set();
            this.words = keys
                .flatMap((key) => ((reply && reply.found[key]) || []).slice(0, MOST_WORDS))
                .filter((word) => !seen.has(word.text) && seen.add(word.text));
        }
        this.drawWords();
    }

    chosen() {
        return this.triggers.value
            .split(",")
            .map((text) => text.trim())
            .filter(Boolean);
    }

    drawWords() {
        const now = this.chosen();
        this.chips.replaceChildren(
            ...(this.words || []).map((word) =>
                button(el("bdi", {}, word.text), () => this.turn(word.text), {
                    class: "lm-button lm-chip",
                    title: word.says,
                    "aria-pressed": String(now.includes(word.text)),
                    "aria-label": `Trigger word ${word.text}`,
                }),
            ),
        );
    }

    turn(text) {
        const now = this.chosen();
        const next = now.includes(text) ? now.filter((one) => one !== text) : [...now, text];
        this.triggers.value = next.join(", ");
        this.set("triggers", this.triggers.value);
        const again = [...this.chips.children].find((chip) => chip.textContent === text);
        if (again instanceof HTMLElement) again.focus();
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
        if (!this.box.hidden) this.offerWords();
    }

    /** @param {import("../types.js").Outlook} plan */
    show(plan) {
        if (this.data.output.triggers === null && this.triggers !== document.activeElement)
            this.triggers.value = plan.triggers;
        if (!this.box.hidden) this.drawWords();
        this.details.show(plan.changes || []);
    }
}
