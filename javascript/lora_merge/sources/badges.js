/* What is known of a LoRA at a glance. */

import { el } from "../core/dom.js";
import { megabytes } from "../core/format.js";

/**
 * What a LoRA is recognised as: words from a fixed list, never from the file.
 * @param {import("../types.js").Mark} mark
 */
export const markText = (mark) => {
    const colon = mark.sort === "epoch" ? "" : ":";
    return `${mark.sure ? "" : "perhaps "}${mark.sort}${mark.what ? `${colon} ${mark.what}` : ""}`;
};

/**
 * The facts of a LoRA.
 * @param {import("../types.js").Item} item
 * @returns {HTMLElement}
 */
export const badges = (item) => {
    const rank =
        item.rank && item.rank[1]
            ? item.rank[0] === item.rank[1]
                ? `r${item.rank[1]}`
                : `r${item.rank[0]}–${item.rank[1]}`
            : "";
    const texts = [
        item.family || (item.candidates || []).join("/"),
        [(item.kinds || []).join("+"), rank].filter(Boolean).join(" "),
        item.size ? megabytes(item.size) : "",
        item.te ? "text encoder" : "",
        item.has_recipe ? "merged" : "",
    ];
    const marks = (item.marks || []).map((mark) =>
        el(
            "span",
            { class: `lm-badge lm-mark${mark.sure ? "" : " lm-perhaps"}`, title: mark.said },
            markText(mark),
        ),
    );
    return el(
        "span",
        { class: "lm-badges" },
        ...texts.filter(Boolean).map((text) => el("span", { class: "lm-badge" }, text)),
        ...marks,
    );
};
