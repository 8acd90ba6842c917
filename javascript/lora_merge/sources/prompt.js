/* Sources from a prompt's tags or from a generated picture, and back. */

import { button, el } from "../core/dom.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "say" | "state" | "use">} PromptNeeds
 */

const LARGEST = 24e6;

export class PromptReader {
    /**
     * @param {PromptNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.text = el("textarea", {
            rows: 3,
            placeholder:
                "Paste a prompt with <lora:…> tags, or drop a generated picture here (PNG, JPEG or WebP)",
            "aria-label": "Prompt with LoRA tags",
            onkeydown: (event) => event.key === "Escape" && this.toggle(),
            onpaste: (event) => {
                const [file] = event.clipboardData.files;
                if (!file) return;
                event.preventDefault();
                this.image(file);
            },
        });
        this.file = el("input", {
            type: "file",
            accept: "image/png,image/jpeg,image/webp",
            "aria-label": "A generated picture",
            onchange: () => this.file.files[0] && this.image(this.file.files[0]),
        });
        this.notes = el("ul", { class: "lm-facts", "aria-live": "polite" });
        this.box = el(
            "div",
            { class: "lm-fold lm-drop", hidden: true },
            this.text,
            el(
                "div",
                { class: "lm-line" },
                button("Read", () => this.read({ text: this.text.value }), { class: "lm-button lm-primary" }),
                this.file,
                el("span", { class: "lm-grow" }),
                button("Close", () => this.toggle(), { class: "lm-button lm-small" }),
            ),
            this.notes,
        );
        this.box.addEventListener(
            "dragover",
            (event) => (event.preventDefault(), this.box.classList.add("lm-over")),
        );
        this.box.addEventListener("dragleave", () => this.box.classList.remove("lm-over"));
        this.box.addEventListener("drop", (event) => {
            event.preventDefault();
            this.box.classList.remove("lm-over");
            if (event.dataTransfer.files[0]) this.image(event.dataTransfer.files[0]);
            else this.read({ text: event.dataTransfer.getData("text/plain") });
        });
    }

    toggle() {
        this.box.hidden = !this.box.hidden;
        if (!this.box.hidden) this.text.focus();
    }

    image(file) {
        if (file.size > LARGEST) return this.needs.say("That picture is larger than 24 MB.", true);
        const reader = new FileReader();
        reader.onload = () => this.read({ image: reader.result });
        return reader.readAsDataURL(file);
    }

    async read(fields) {
        const reply = await this.needs.ask("prompt", fields);
        this.file.value = "";
        if (!reply) return;
        /* what could not be taken over stays to be read, beside the rows it is about */
        this.notes.replaceChildren(...reply.notes.map((note) => el("li", { class: "lm-warn" }, note)));
        if (reply.state) {
            this.box.hidden = !reply.notes.length;
            return void this.needs.use(reply.state, {}, reply.notes);
        }
        if (!reply.rows.length)
            return void this.needs.say(["No LoRA tags were found in it.", ...reply.notes].join(" "), true);
        this.needs.state.data.sources = reply.rows.map((row) =>
            this.needs.state.row(this.needs.state.data.next++, row),
        );
        this.needs.state.data.output.triggers = null;
        this.needs.state.changed("rows");
        const count = `${reply.rows.length} ${reply.rows.length === 1 ? "source was" : "sources were"} read`;
        if (reply.notes.length)
            this.needs.say(`${count}; what could not be taken over is listed below the prompt.`);
        else {
            this.box.hidden = true;
            this.needs.say(`${count}. Ctrl+Z takes it back.`);
        }
    }

    async copy() {
        const reply = await this.needs.ask("prompt_write", { state: this.needs.state.data });
        if (!reply) return;
        if (!reply.text) return void this.needs.say("Pick a LoRA first.");
        const notes = reply.notes.length ? ` (${reply.notes.join("; ")})` : "";
        try {
            await navigator.clipboard.writeText(reply.text);
            this.needs.say(`Copied: ${reply.text}${notes}`);
        } catch {
            this.needs.say(`${reply.text}${notes}`);
        }
    }
}
