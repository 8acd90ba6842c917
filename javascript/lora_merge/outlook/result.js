/* A merge that was saved: where, the proof, what it cost, and what can be done with it. */

import { button, el } from "../core/dom.js";
import { megabytes, percentText } from "../core/format.js";
import { loadsIn } from "./loads.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "addSource" | "catalog" | "compare" | "open" | "validate"
 *     | "verify">
 *   } ResultNeeds
 */

/* `found`: what the loaded checkpoint's own table knows of the merge; null where nobody can say */
const onCheckpoint = (found) => {
    if (!found) return null;
    const whole = found.loaded === found.total;
    return el(
        "p",
        { class: whole ? "lm-good-text" : "lm-warn", title: found.lost.join("\n") },
        `${found.loaded} of ${found.total} modules load on the checkpoint in use (`,
        el("bdi", {}, found.name),
        ")",
    );
};

/**
 * The parts of the card of a saved merge.
 * @param {ResultNeeds} needs what is taken
 * @param {any} result of the job
 * @param {Record<"use" | "copy" | "partners", (result: any) => any>} acts what its other buttons do
 * @returns {Node[]}
 */
export const resultParts = (needs, result, acts) => {
    const use = needs.catalog.can_generate;
    const folder = result.key.split("/").slice(1, -1).join("/");
    const { min, max } = result.rank;
    const ranks = min === max ? max : `${min}–${max}`;
    return [
        el("h3", {}, el("span", { class: "lm-good-text" }, "Saved "), el("bdi", {}, result.output)),
        el(
            "p",
            { class: "lm-dim" },
            "in the LoRA folder",
            ...(folder ? [", in ", el("bdi", {}, folder)] : []),
        ),
        el(
            "p",
            {
                class: "lm-proof",
                title:
                    "The proof: the file, read back, against what was decided; what is left is the " +
                    "rounding of its numbers",
            },
            el("b", {}, result.proof),
            !result.choice && result.worst_module
                ? ` (worst module ${percentText(result.worst_module.error, 3)})`
                : "",
        ),
        result.choice
            ? el(
                  "p",
                  {
                      class: "lm-choice-made",
                      title:
                          "The choice: how much of the merge (of its energy, Σ S²) the rank that was " +
                          "asked for keeps",
                  },
                  el("b", {}, result.choice),
              )
            : null,
        el(
            "p",
            { class: "lm-dim" },
            `rank ${ranks} · ${megabytes(result.bytes)} · ${result.seconds.total.toFixed(1)} s`,
        ),
        loadsIn(result.loads_in),
        onCheckpoint(result.on_checkpoint),
        ...result.warnings.map((text) => el("p", { class: "lm-warn" }, text)),
        el(
            "div",
            { class: "lm-line" },
            use ? button("Use in txt2img", () => acts.use(result), { class: "lm-button lm-primary" }) : null,
            use ? button("Compare in txt2img", () => needs.compare(result.alias)) : null,
            result.entry
                ? button("Validate", () => needs.validate(result.entry), {
                      title: "Five steps and ten test prompts, in the history",
                  })
                : null,
            button("Copy tag", () => acts.copy(result), { title: result.prompt }),
            button("Open recipe", () => needs.open({ key: result.key }), {
                title: "Put what made this file into the tab",
            }),
            button("Merge it further", () => needs.addSource(result.key)),
            result.noise && result.entry
                ? button(
                      `The same for the ${result.noise === "high" ? "low" : "high"}-noise files`,
                      () => acts.partners(result),
                      {
                          title:
                              "Merge the partner files of Wan 2.2 by this recipe, under the " +
                              "partner's name",
                      },
                  )
                : null,
            button("Verify", () => needs.verify(result.key)),
        ),
    ].filter((part) => part !== null);
};
