/* The panel "Compare": pictures of the merge beside its sources, and several merges to choose from. */

import { button, el } from "../core/dom.js";
import { openSweep } from "../history/sweep.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "compare" | "preview">
 *   & import("../history/sweep.js").SweepNeeds} SeeingNeeds
 */

/**
 * The panel.
 * @param {SeeingNeeds} needs what it takes
 * @param {HTMLElement} strip where a preview's pictures come
 * @param {HTMLElement} two where two merges stand side by side
 * @returns {HTMLElement}
 */
export const comparePanel = (needs, strip, two) => {
    const pictures = needs.catalog.can_generate
        ? [
              el(
                  "div",
                  { class: "lm-line" },
                  button("Preview", () => needs.preview(), { class: "lm-button lm-primary" }),
                  el("span", { class: "lm-dim" }, "stack and merge, by txt2img's settings; nothing is saved"),
              ),
              strip,
              el(
                  "div",
                  { class: "lm-line" },
                  button("Compare in txt2img", () => needs.compare()),
                  el(
                      "span",
                      { class: "lm-dim" },
                      "every source, the stack and the merge in one labelled grid",
                  ),
              ),
          ]
        : [
              el(
                  "p",
                  { class: "lm-dim" },
                  "In the WebUI, pictures of sources, stack and merge stand here side by side. This page " +
                      "runs without one.",
              ),
          ];
    return el(
        "div",
        { class: "lm-seeing" },
        el("h3", {}, "Pictures"),
        ...pictures,
        el("h3", {}, "Several merges at once"),
        el(
            "div",
            { class: "lm-line" },
            button("Sweep…", () => openSweep(needs)),
            el(
                "span",
                { class: "lm-dim" },
                "the same merge with one thing changed, several times; it asks before it writes",
            ),
        ),
        two,
    );
};
