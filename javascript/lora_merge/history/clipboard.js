/* Copying text, also where the page is not served securely. */

import { el, tabRoot } from "../core/dom.js";

/* browsers give the clipboard to secure pages only; a marked text can be copied everywhere */
const copyMarked = (text) => {
    const before = document.activeElement;
    const area = el("textarea", { class: "lm-unseen", value: text, "aria-hidden": "true" });
    (document.querySelector("dialog[open]") || tabRoot()).append(area);
    area.select();
    let done;
    try {
        done = document.execCommand("copy");
    } catch {
        done = false;
    }
    area.remove();
    if (before instanceof HTMLElement) before.focus({ preventScroll: true });
    return done;
};

/**
 * Copy text.
 * @param {string} text
 * @returns {Promise<boolean>} whether it is in the clipboard now
 */
export const copyText = async (text) => {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        return copyMarked(text);
    }
};
