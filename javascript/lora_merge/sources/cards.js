/* A button on every LoRA card of the WebUI. */

import { el } from "../core/dom.js";

/**
 * Make the button of a card when the pointer or the keyboard first comes to it: nothing of the WebUI's is
 * changed.
 * @param {any} event of the pointer or the focus
 * @param {import("../app.js").App} app the tab, which the card's LoRA is added to
 */
export const addToCard = (event, app) => {
    const card = event.target.closest && event.target.closest('[id$="_lora_cards"] .card');
    const row = card && card.querySelector(".button-row");
    if (!row || row.querySelector(".lora-merge-add")) return;
    const add = el(
        "div",
        {
            class: "lora-merge-add card-button",
            role: "button",
            tabindex: 0,
            title: "Add to Merge",
            "aria-label": "Add to Merge",
        },
        "⊕",
    );
    const go = (happened) => {
        happened.preventDefault();
        happened.stopPropagation();
        const name = card.dataset.name || "";
        const item = app.library.items.find((found) => found.name === name || found.alias === name);
        if (item) app.addSource(item.key);
        app.say(item ? `${item.name} was added.` : `${name} is not in the list yet; refresh it.`, !item);
        add.textContent = item ? "✓" : "✕";
    };
    add.addEventListener("click", go);
    add.addEventListener(
        "keydown",
        (pressed) => (pressed.key === "Enter" || pressed.key === " ") && go(pressed),
    );
    row.append(add);
};
