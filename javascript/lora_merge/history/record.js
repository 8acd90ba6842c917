/* A merge of the history as a record for other places: plain text and Markdown, copied with one press. */

import { button, el } from "../core/dom.js";
import { copyText } from "./clipboard.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask">} RecordNeeds
 */

/**
 * The record of an entry, to be read and copied.
 * @param {RecordNeeds} needs what is taken
 * @param {any} entry of the history
 * @returns {Promise<HTMLElement[] | null>} null where the server refused
 */
export const recordParts = async (needs, entry) => {
    const reply = await needs.ask("record", { entry: entry.id });
    if (!reply) return null;
    const said = el("span", { class: "lm-good-text", role: "status" });
    const copy = async (text) => {
        said.textContent = (await copyText(text)) ? "Copied." : "Mark the text and copy it by hand.";
    };
    return [
        el("pre", { class: "lm-record", tabindex: 0, "aria-label": "Record" }, reply.text),
        el(
            "div",
            { class: "lm-line" },
            button("Copy as text", () => copy(reply.text), { class: "lm-button lm-small lm-primary" }),
            button("Copy as Markdown", () => copy(reply.markdown), { class: "lm-button lm-small" }),
            said,
        ),
    ];
};
