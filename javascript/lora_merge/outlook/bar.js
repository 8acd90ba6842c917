/* The bar that stays in view: the name, what will come out in short, Merge; then progress, then
   the result. */

import { button, el } from "../core/dom.js";
import { leftText } from "../core/format.js";

const STAGES = {
    queue: "waiting for the generation to finish",
    survey: "looking at all modules",
    merge: "merging",
    verify: "proving",
    save: "saving",
    recipe: "reading the recipe",
};

export class Bar {
    /**
     * @param {{saving: import("./saving.js").Saving, result: import("./result.js").Result,
     *   message: HTMLElement, can_generate: boolean}} parts what stands in it
     * @param {{merge: () => void, cancel: () => void, preview: () => void}} works what its buttons do
     */
    constructor(parts, works) {
        this.name = el("output", { class: "lm-output-name", "aria-label": "Name of the file" });
        this.short = el("span", { class: "lm-short" });
        this.bar = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress" });
        this.stage = el("span", { class: "lm-dim lm-stage" });
        this.stop = button("Cancel", () => works.cancel(), { hidden: true, class: "lm-button lm-small" });
        this.running = el(
            "div",
            { class: "lm-running", hidden: true },
            el("div", { class: "lm-grow" }, this.bar, this.stage),
            this.stop,
        );
        this.go = button("Merge", () => works.merge(), {
            class: "lm-button lm-primary lm-big",
            title: "Ctrl+Enter",
            id: "lora_merge_go",
        });
        /* what changed, for those who hear the page: the stages, and what came of it */
        this.heard = el("div", { class: "lm-heard", role: "status", "aria-live": "polite" });
        this.box = el(
            "div",
            { class: "lm-foot", role: "region", "aria-label": "Merge" },
            this.heard,
            parts.result.box,
            parts.saving.box,
            el(
                "div",
                { class: "lm-foot-row" },
                el("label", { class: "lm-name-field" }, el("span", {}, "Name"), parts.saving.template),
                el("div", { class: "lm-status" }, this.name, this.short, this.running, parts.message),
                el(
                    "div",
                    { class: "lm-foot-buttons" },
                    parts.saving.toggle,
                    parts.can_generate
                        ? button("Preview", () => works.preview(), {
                              title:
                                  "Stack and merge side by side, with the " +
                                  "settings of txt2img; nothing is saved",
                          })
                        : null,
                    this.go,
                ),
            ),
        );
    }

    /** @param {string} text what is said to those who hear the page */
    hear(text) {
        this.heard.textContent = text;
    }

    /**
     * Show what will come out, or why nothing will.
     * @param {string} kind "", "bad" or "warn"
     * @param {string} name of the file
     * @param {string} short
     */
    say(kind, name, short) {
        this.name.replaceChildren(el("bdi", {}, name));
        this.name.title = name;
        this.short.className = `lm-short${kind ? ` lm-${kind}-text` : ""}`;
        this.short.textContent = short;
        this.short.title = short;
    }

    /** @param {boolean} yes a job runs */
    run(yes) {
        this.running.hidden = this.stop.hidden = this.bar.hidden = !yes;
        this.go.disabled = yes;
    }

    /**
     * Show how far a job is.
     * @param {import("../types.js").JobReply} now
     * @param {boolean} stopping
     */
    progress(now, stopping) {
        const total =
            now.what === "merge" || now.what === "verify" ? now.share : now.total ? now.done / now.total : 0;
        if (now.state === "running" && now.stage !== "queue" && total) this.bar.value = total;
        else this.bar.removeAttribute("value");
        const left = now.left === null || now.left === undefined ? "" : ` · ${leftText(now.left)} left`;
        const count = now.total ? ` · ${now.done} of ${now.total} modules` : "";
        const stage = STAGES[now.stage] || now.stage || "starting";
        this.stage.textContent = stopping
            ? "cancelling …"
            : now.state === "waiting"
              ? "waiting for the one before …"
              : `${stage}${count}${left}`;
        if (this.spoken !== stage) this.hear((this.spoken = stage));
    }
}
