/* What was deleted, or replaced by a merge, and can go back to its place. */

import { button, el } from "../core/dom.js";
import { timeText } from "../core/format.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "say">} TrashNeeds
 */

export class Trash {
    /**
     * @param {TrashNeeds} needs what it takes
     * @param {() => any} restored called when something is back
     */
    constructor(needs, restored) {
        this.needs = needs;
        this.restored = restored;
        this.list = el("div", {});
        this.box = el(
            "details",
            { class: "lm-trash", ontoggle: () => this.box.open && this.draw() },
            el("summary", {}, "Deleted and replaced LoRAs"),
            this.list,
        );
    }

    /* the history is drawn anew when something was deleted: what is open then shows it */
    drawn() {
        if (this.box.open) this.draw();
        return this.box;
    }

    async draw() {
        const reply = await this.needs.ask("trash", {});
        if (!reply) return;
        const rows = reply.thrown.map((one) =>
            el(
                "tr",
                {},
                el("td", {}, timeText(one.time)),
                el("td", {}, el("bdi", {}, one.name)),
                el("td", {}, one.why),
                el(
                    "td",
                    {},
                    button("Put back", () => this.restore(one), {
                        class: "lm-button lm-small",
                        title: "To where it was, with what lay beside it",
                        "aria-label": `Put ${one.name} back`,
                    }),
                ),
            ),
        );
        this.list.replaceChildren(
            rows.length
                ? el(
                      "table",
                      { class: "lm-table lm-thrown", "aria-label": "Deleted and replaced LoRAs" },
                      el("tbody", {}, ...rows),
                  )
                : el("p", { class: "lm-dim" }, "Nothing lies in the trash."),
        );
    }

    async restore(one) {
        if (!(await this.needs.ask("restore", { thrown: one.id }))) return;
        this.needs.say(`${one.name} is back where it was.`);
        await this.restored();
    }
}
