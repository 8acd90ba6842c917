/* What came of pressing Merge, where the eye is: the saved file and its next steps, or why there is none. */

import { button, el } from "../core/dom.js";
import { megabytes, percentText } from "../core/format.js";
import { loadsIn } from "./loads.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "addSource"
 *     | "ask"
 *     | "catalog"
 *     | "compare"
 *     | "open"
 *     | "say"
 *     | "useTag"
 *     | "validate"
 *     | "verify">} ResultNeeds
 */

export class Result {
    /**
     * @param {ResultNeeds} needs what it takes
     * @param {(result: any) => void} partners merges the partner files by the same recipe
     */
    constructor(needs, partners) {
        this.needs = needs;
        this.partners = partners;
        this.shown = null;
        this.key = "";
        this.box = el("section", { class: "lm-result", hidden: true, "aria-label": "Result" });
    }

    close() {
        this.box.hidden = true;
        this.key = "";
    }

    /** The set-up was changed: a refusal is over, of a saved file the sentence stays. */
    older() {
        if (this.key) this.box.classList.add("lm-folded");
        else this.close();
    }

    card() {
        const { entry, key } = this.shown;
        return this.needs.ask("card", { entry: entry || "", key });
    }

    /** A file that was renamed is shown under its new name; one that is gone, not at all. */
    async recheck() {
        const { shown } = this;
        if (!this.key) return;
        const card = await this.card();
        if (!card || shown !== this.shown || !this.key) return;
        if (card.state === "renamed")
            this.show({
                ...shown,
                key: card.key,
                output: `${card.name}.safetensors`,
                alias: card.prompt.slice(6, -3),
                prompt: card.prompt,
                triggers: card.triggers,
            });
        else if (card.state !== "there") this.close();
    }

    put(kind, ...parts) {
        this.box.className = `lm-result lm-${kind}-result`;
        this.box.hidden = false;
        /* the page's own function would write "null" for what is not there */
        this.box.replaceChildren(...parts.filter((part) => part !== null));
    }

    /**
     * Say why nothing was saved, with the buttons that mend it.
     * @param {string} sentence
     * @param {HTMLElement[]} mends
     */
    refuse(sentence, mends) {
        this.key = "";
        this.put(
            "bad",
            el(
                "div",
                { class: "lm-line lm-headline", role: "alert" },
                el("span", { class: "lm-grow" }, el("b", {}, "Not merged. "), sentence),
                this.cross(),
            ),
            mends.length ? el("div", { class: "lm-line lm-next" }, ...mends) : null,
        );
    }

    cross() {
        return button("✕", () => this.close(), {
            class: "lm-button lm-small lm-icon",
            "aria-label": "Close the result",
            title: "Close",
        });
    }

    /**
     * Show a saved merge.
     * @param {Record<string, any>} result the report of the job
     */
    show(result) {
        this.shown = result;
        this.key = result.key;
        this.put(
            "good",
            this.headline(result),
            ...result.warnings.map((text) => el("p", { class: "lm-warn" }, text)),
            this.steps(result),
            this.details(result),
        );
    }

    /* what is said of it to those who hear the page */
    spoken(result) {
        return [`Saved ${result.output}`, result.proof, result.choice].filter(Boolean).join(". ");
    }

    headline(result) {
        const { min, max } = result.rank;
        const ranks = min === max ? max : `${min}–${max}`;
        return el(
            "div",
            { class: "lm-line lm-headline" },
            el(
                "div",
                { class: "lm-grow lm-line" },
                el("h3", {}, el("span", { class: "lm-good-text" }, "Saved "), el("bdi", {}, result.output)),
                el(
                    "span",
                    {
                        class: "lm-proof",
                        title:
                            "The proof: the file, read back, against what was decided; " +
                            "what is left is the rounding of its numbers",
                    },
                    el("b", {}, result.proof),
                ),
                result.choice
                    ? el(
                          "span",
                          {
                              class: "lm-choice-made",
                              title:
                                  "The choice: how much of the merge (of its energy, Σ " +
                                  "S²) the rank that was asked for keeps",
                          },
                          el("b", {}, result.choice),
                      )
                    : null,
                el(
                    "span",
                    { class: "lm-dim" },
                    `rank ${ranks} · ${megabytes(result.bytes)} · ${result.seconds.total.toFixed(1)} s`,
                ),
                loadsIn(result.loads_in),
            ),
            button("Next steps", () => this.box.classList.remove("lm-folded"), {
                class: "lm-button lm-small lm-unfold",
            }),
            this.cross(),
        );
    }

    steps(result) {
        const { needs } = this;
        const use = needs.catalog.can_generate;
        const small = "lm-button lm-small";
        return el(
            "div",
            { class: "lm-line lm-next" },
            use ? button("Use in txt2img", () => this.use(result), { class: `${small} lm-primary` }) : null,
            result.entry
                ? button("Validate", () => needs.validate(result.entry), {
                      title: "Five steps and ten test prompts, in the history",
                      class: small,
                  })
                : null,
            button("Copy tag", () => this.copy(result), { title: result.prompt, class: small }),
            use ? button("Compare in txt2img", () => needs.compare(result.alias), { class: small }) : null,
            button("Open recipe", () => needs.open({ key: result.key }), {
                title: "Put what made this file into the tab",
                class: small,
            }),
            button("Merge it further", () => needs.addSource(result.key), {
                title: "Add it as a source",
                class: small,
            }),
            result.noise && result.entry
                ? button(
                      `The same for the ${result.noise === "high" ? "low" : "high"}-noise files`,
                      () => this.partners(result),
                      {
                          title:
                              "Merge the partner files of Wan 2.2 by this " +
                              "recipe, under the partner's name",
                          class: small,
                      },
                  )
                : null,
            button("Verify", () => needs.verify(result.key), {
                title: "Read the file again and hold it against its recipe",
                class: small,
            }),
        );
    }

    details(result) {
        const folder = result.key.split("/").slice(1, -1).join("/");
        return el(
            "details",
            { class: "lm-next" },
            el("summary", {}, "Details"),
            el(
                "p",
                { class: "lm-dim" },
                "in the LoRA folder",
                ...(folder ? [", in ", el("bdi", {}, folder)] : []),
                !result.choice && result.worst_module
                    ? `; worst module ${percentText(result.worst_module.error, 3)}`
                    : "",
            ),
            this.onCheckpoint(result.on_checkpoint),
        );
    }

    /* `found`: what the loaded checkpoint's own table knows of the merge; null where nobody can say */
    onCheckpoint(found) {
        if (!found) return null;
        const whole = found.loaded === found.total;
        return el(
            "p",
            { class: whole ? "lm-good-text" : "lm-warn", title: found.lost.join("\n") },
            `${found.loaded} of ${found.total} modules load on the checkpoint in use (`,
            el("bdi", {}, found.name),
            ")",
        );
    }

    async copy(result) {
        const text = this.tag(result);
        try {
            await navigator.clipboard.writeText(text);
            this.needs.say(`Copied: ${text}`);
        } catch {
            this.needs.say(text);
        }
    }

    tag(result) {
        return result.triggers ? `${result.triggers}, ${result.prompt}` : result.prompt;
    }

    async use(result) {
        const card = await this.card();
        if (!card) return;
        if (!card.prompt) this.needs.say(card.said, true);
        else this.needs.useTag(card.prompt, this.tag({ ...result, ...card }));
    }
}
