/* Saved recipes. */

import { button, el } from "../core/dom.js";
import { confirmed, onEnter } from "./dialog.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask"
 *     | "catalog"
 *     | "compare"
 *     | "open"
 *     | "say"
 *     | "state"
 *     | "useTag">} RecipesNeeds
 */

/**
 * Draw the saved recipes.
 * @param {RecipesNeeds} needs what is taken
 * @param {HTMLElement} panel where they are drawn
 * @param {() => boolean} wanted the panel still shows recipes when the answer comes
 */
export const drawRecipes = async (needs, panel, wanted) => {
    const reply = await needs.ask("recipes", {});
    if (!reply || !wanted()) return;
    const name = el("input", {
        type: "text",
        placeholder: "Name",
        maxlength: 80,
        "aria-label": "Name of the recipe",
        onkeydown: onEnter(() => save()),
    });
    const save = async () => {
        if (!name.value.trim()) return void name.focus();
        const known = reply.names.includes(name.value.trim());
        if (known && !(await confirmed(`Replace the recipe ${name.value.trim()}?`, "Replace"))) return;
        const done = await needs.ask("recipe_save", {
            name: name.value,
            state: needs.state.data,
            overwrite: known,
        });
        if (done) needs.say(`Saved the recipe ${done.name}; <merge:${done.name}:1> uses it in any prompt.`);
        if (done) drawRecipes(needs, panel, wanted);
    };
    const row = (one) =>
        el(
            "li",
            { class: "lm-line" },
            el("bdi", { class: "lm-grow" }, one),
            button("Load", () => needs.open({ recipe: one }), {
                class: "lm-button lm-small",
                "aria-label": `Load ${one}`,
            }),
            needs.catalog.can_generate
                ? button("Use in txt2img", () => needs.useTag(`<merge:${one}:1>`), {
                      class: "lm-button lm-small",
                  })
                : null,
            needs.catalog.can_generate
                ? button("Compare in txt2img", () => needs.compare(one), { class: "lm-button lm-small" })
                : null,
            button(
                "✕",
                async () =>
                    (await confirmed(`Move the recipe ${one} into the trash folder?`, "Delete")) &&
                    (await needs.ask("recipe_remove", { name: one })) &&
                    drawRecipes(needs, panel, wanted),
                { class: "lm-button lm-small", "aria-label": `Delete ${one}` },
            ),
        );
    panel.replaceChildren(
        el(
            "div",
            { class: "lm-line" },
            el("b", {}, "Save what is set up"),
            "as",
            name,
            button("Save recipe", save, { class: "lm-button lm-primary" }),
        ),
        el("ul", { class: "lm-presets" }, ...reply.names.map(row)),
        reply.names.length
            ? ""
            : el(
                  "p",
                  { class: "lm-dim" },
                  "A recipe can be used in any prompt as <merge:NAME:1> without saving a LoRA.",
              ),
    );
};
