/* The WebUI's list of scripts. */

import { find } from "../core/dom.js";
import { pause } from "../core/timing.js";

/**
 * Choose an entry of the WebUI's script list as a person does.
 * @param {string} tab txt2img or img2img
 * @param {string} title
 * @returns {Promise<string | null>} the one that was chosen before; null where that failed
 */
export const chooseScript = async (tab, title) => {
    const box =
        find(`#${tab}_script_container #script_list`) || find(`#${tab}_script_container [id="script_list"]`);
    const input = box && box.querySelector("input");
    if (!input) return null;
    const before = input.value;
    if (before === title) return before;
    input.focus();
    input.dispatchEvent(new Event("focus"));
    for (let turn = 0; turn < 20; turn += 1) {
        await pause(50);
        const item = [...box.querySelectorAll("ul li")].find(
            (one) => one.getAttribute("aria-label") === title || one.dataset.value === title,
        );
        if (!item) continue;
        item.dispatchEvent(new MouseEvent("mousedown", { bubbles: true, cancelable: true }));
        item.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
        break;
    }
    await pause(150);
    input.blur();
    return input.value === title ? before : null;
};
