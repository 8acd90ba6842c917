/* Starts the tab when the page has our root, and again when "Reload UI" gives a new one. */

import { App } from "./app.js";
import { bridge } from "./core/bridge.js";
import { el, find, tabRoot } from "./core/dom.js";
import { addToCard } from "./sources/cards.js";

/** The one name that we leave in the page: gradio's event calls the bridge, tests look at the tab.
 * @type {{bridge: import("./core/bridge.js").Bridge, app: App | null}} */
const place = { bridge, app: null };

const start = async (root) => {
    root.dataset.started = "1";
    root.replaceChildren(el("p", { class: "lm-dim" }, "Reading your LoRAs …"));
    try {
        const known = await bridge.ask("init", {});
        const library = await bridge.ask("library", { since: "" });
        place.app = new App(root, known, library, bridge);
        if (library.done < library.total) place.app.library.refresh(false);
    } catch (error) {
        root.replaceChildren(el("p", { class: "lm-bad" }, `The Merge tab could not start: ${error.message}`));
    }
};

const watch = () => {
    const root = tabRoot();
    const { app } = place;
    /* the field comes into the page when the script is chosen */
    if (app && !app.pictures.busy) app.tellScripts();
    if (app) app.pictures.watch();
    if (root && !root.dataset.started && find("#lora_merge_send")) start(root);
};

const card = (event) => place.app && addToCard(event, place.app);

Object.assign(window, { loraMerge: place });
watch();
document.addEventListener("mouseover", card);
document.addEventListener("focusin", card);
/* gradio draws the page some time after it has loaded, and once more on "Reload UI" */
setInterval(watch, 500);
