/* The panel "Compare": pictures of the merge beside its sources, and several merges to choose from. */

import { button, el } from "../core/dom.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog" | "compare" | "preview">} SeeingNeeds
 */

/**
 * The panel.
 * @param {SeeingNeeds} needs what it takes
 * @param {HTMLElement} strip where a preview's pictures come
 * @param {() => void} sweep saves several merges
 * @returns {HTMLElement}
 */
export const comparePanel = (needs, strip, sweep) => {
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
                  "In the WebUI, pictures of sources, stack and merge stand here side by side. This page runs " +
                      "without one.",
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
            button("Sweep", sweep),
            el(
                "span",
                { class: "lm-dim" },
                "saves five merges, with the first source at 0.2, 0.4, 0.6, 0.8 and 1.0",
            ),
        ),
    );
};
