/* What goes with a merge besides its numbers: the merge it was developed from, and the picture on its
   card. */

import { el, fillSelect, select } from "../core/dom.js";
import { timeText } from "../core/format.js";
import { letterOf } from "../core/letters.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "library" | "say" | "state">} DetailsNeeds
 */

const SIDE = 768;

export class Details {
    /**
     * @param {DetailsNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.picture = null;
        this.based = select([["", "nothing"]], "", (value) => this.base(value), { "aria-label": "Based on" });
        for (const name of ["focus", "pointerdown"]) this.based.addEventListener(name, () => this.load());
        this.changes = el("ul", { class: "lm-facts lm-changes" });
        this.source = select([["", "none"]], "", (value) => this.choose(value), {
            "aria-label": "Preview picture",
        });
        for (const name of ["focus", "pointerdown"]) this.source.addEventListener(name, () => this.offer());
        this.file = el("input", {
            type: "file",
            accept: "image/png,image/jpeg,image/webp",
            hidden: true,
            "aria-label": "A picture for the card",
            onchange: () => this.file.files[0] && this.read(this.file.files[0]),
        });
        this.thumb = el("span", { class: "lm-thumb lm-noimage", "aria-hidden": "true" });
        this.based_on = el(
            "label",
            { title: "The merge this one was developed from; the history shows what changed" },
            el("span", {}, "Based on"),
            this.based,
        );
        this.preview = el(
            "label",
            { title: "On the LoRA's card; a picture can be dropped here" },
            el("span", {}, "Preview picture"),
            el("span", { class: "lm-line" }, this.thumb, this.source, this.file),
        );
        this.preview.addEventListener("dragover", (event) => event.preventDefault());
        this.preview.addEventListener("drop", (event) => {
            event.preventDefault();
            if (event.dataTransfer.files[0]) this.read(event.dataTransfer.files[0]);
        });
        needs.state.listen(() => this.update());
        this.update();
    }

    get output() {
        return this.needs.state.data.output;
    }

    /* ------------------------------------------------------------ based on */

    update() {
        const { based_on: id, based_on_name: name } = this.output;
        if (id && ![...this.based.options].some((option) => option.value === id))
            fillSelect(
                this.based,
                [
                    ["", "nothing"],
                    [id, name || id],
                ],
                id,
            );
        this.based.value = id || "";
        if (!id) this.changes.replaceChildren();
    }

    async load() {
        const reply = await this.needs.ask("history", {});
        if (!reply) return;
        const chosen = this.output.based_on || "";
        const options = reply.entries
            .filter((entry) => entry.status !== "broken")
            .slice(0, 60)
            .map((entry) => [entry.id, `${entry.name} · ${timeText(entry.time)}`]);
        const now = JSON.stringify([chosen, options]);
        if (now === this.listed) return;
        this.listed = now;
        fillSelect(this.based, [["", "nothing"], ...options], chosen);
    }

    base(id) {
        const option = [...this.based.options].find((found) => found.value === id);
        this.develop(id, id && option ? option.textContent.split(" · ")[0] : "");
        this.needs.state.changed("value", this.based);
    }

    /* what is set up from now on is developed from this merge */
    develop(id, name) {
        Object.assign(this.output, { based_on: id, based_on_name: name });
    }

    show(lines) {
        const name = this.output.based_on_name || "the merge it is based on";
        this.changes.replaceChildren(
            ...(lines.length
                ? [el("li", { class: "lm-plain-line" }, "Since ", el("bdi", {}, name), ":")]
                : []),
            ...lines.slice(0, 12).map((line) => el("li", { class: "lm-info" }, line)),
        );
    }

    /* ------------------------------------------------------------ preview picture */

    offer() {
        const rows = this.needs.state.data.sources
            .map((row, index) => [row, index])
            .filter(([row]) => this.needs.library.item(row.key) && this.needs.library.item(row.key).preview);
        fillSelect(
            this.source,
            [
                ["", "none"],
                ...rows.map(([row, index]) => [row.key, `that of ${letterOf(index)}`]),
                ...(this.picture && this.picture.data ? [["data", "your picture"]] : []),
                ["file", "a picture …"],
            ],
            this.value(),
        );
    }

    value() {
        if (!this.picture) return "";
        return this.picture.like || "data";
    }

    choose(value) {
        if (value === "file") {
            this.source.value = this.value();
            this.file.click();
        } else this.set(value === "" ? null : value === "data" ? this.picture : { like: value });
    }

    set(picture) {
        this.picture = picture;
        const item = picture && picture.like ? this.needs.library.item(picture.like) : null;
        const address = picture ? picture.data || (item && item.preview) : "";
        const next = address
            ? el("img", { class: "lm-thumb", src: address, alt: "" })
            : el("span", { class: "lm-thumb lm-noimage", "aria-hidden": "true" });
        this.thumb.replaceWith(next);
        this.thumb = next;
        this.offer();
    }

    /* as large as a card shows it: the file beside the LoRA stays small */
    read(file) {
        const picture = new Image();
        const address = URL.createObjectURL(file);
        picture.onload = () => {
            const scale = Math.min(1, SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
            const canvas = el("canvas");
            canvas.width = Math.max(1, Math.round(picture.naturalWidth * scale));
            canvas.height = Math.max(1, Math.round(picture.naturalHeight * scale));
            canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
            URL.revokeObjectURL(address);
            this.set({ data: canvas.toDataURL("image/png") });
        };
        picture.onerror = () => this.needs.say("That file is not a picture this browser can show.", true);
        picture.src = address;
        this.file.value = "";
    }

    /* the state that is sent: a picture is too large to be kept in the browser with the rest */
    filled(state) {
        return this.picture ? { ...state, output: { ...state.output, preview: this.picture } } : state;
    }
}
