/* The prompt of txt2img. */

import { find, put } from "../core/dom.js";
import { pause } from "../core/timing.js";

const field = () => find("#txt2img_prompt textarea");

/* Newer gradios draw a tab some time after it was chosen, and leave the page scrolled as the tab before had
   it: what is written into must be seen. */
const showPrompt = async () => {
    if (typeof window.switch_to_txt2img === "function") window.switch_to_txt2img();
    for (let turn = 0; turn < 30 && !field().offsetParent; turn += 1) await pause(50);
    /* the WebUI may take the focus once more when the tab has come */
    for (let turn = 0; turn < 6; turn += 1) {
        field().scrollIntoView({ block: "center" });
        field().focus({ preventScroll: true });
        await pause(50);
    }
};

/**
 * Put a tag into the prompt of txt2img, once, and go there.
 * @param {string} tag
 * @param {string} [text] what is added where the tag is missing
 * @returns {Promise<boolean>} false where there is no txt2img
 */
export const addToPrompt = async (tag, text = tag) => {
    if (!field()) return false;
    const { value } = field();
    if (!value.includes(tag)) put(field(), value.trim() ? `${value.trim()}, ${text}` : text);
    await showPrompt();
    return true;
};

/**
 * Put a prompt into txt2img in place of what is there, and go there.
 * @param {string} text
 * @param {string} negative
 */
export const fillPrompt = async (text, negative) => {
    put(find("#txt2img_neg_prompt textarea"), negative);
    put(field(), text);
    await showPrompt();
};
