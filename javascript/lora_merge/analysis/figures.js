/* What the maps and the curve of the tab show, as the page of a report does: the same numbers, in the same
   words and colours. tests/test_javascript.py holds them against lib_merge/analysis/plots.py. */

import { megabytes, share } from "../core/format.js";
import { Scale } from "./heatmap.js";

/* standard errors beyond which a sampled figure is shown: with a hundred cells, two are reached by chance */
const SURE = 3;

const percent = (value) => String(Math.round(100 * value));

/* without a leading zero, and without a minus before nothing */
const short = (value, digits) => {
    const rounded = Number(value.toFixed(digits));
    if (!rounded) return "0";
    return Math.abs(rounded) < 1 ? rounded.toFixed(digits).replace("0.", ".") : rounded.toFixed(digits);
};

/** The scale of each map that the report has, too. */
export const SCALES = {
    shares: new Scale(0, 1, percent, " %"),
    cosine: new Scale(-1, 1, (value) => short(value, 2), "", true),
    excess: new Scale(-10, 10, (value) => short(value, 1), " points", true),
};

/**
 * How much of the merge a LoRA is in a block.
 * @param {any} report
 * @param {number} index of the LoRA
 * @param {string} block
 * @returns {number | null} null where nothing acts there
 */
export const shareOf = ({ recipe }, index, block) =>
    recipe && recipe.blocks[block] && recipe.blocks[block].shares.some(Boolean)
        ? recipe.blocks[block].shares[index]
        : null;

/**
 * A figure of a pair in a block.
 * @param {any} pair of the report
 * @param {"cosine" | "excess"} kind
 * @param {string} block
 * @returns {number | null} null where one of the two does not act
 */
export const pairFigure = (pair, kind, block) => {
    const part = pair.blocks[block];
    if (part === undefined || part[kind] === null) return null;
    if (kind === "cosine") return part.cosine;
    return Math.abs(part.excess) > SURE * part.error ? 100 * part.excess : 0;
};

/**
 * What the rank in force keeps, beside its line in the curve.
 * @param {any} recipe of the report
 */
export const cutText = ({ rank: [least, most], error, bytes }) => {
    const rank = least === most ? most : `${least} to ${most}`;
    return `rank ${rank}: ${share(1 - error ** 2, 1)} in ${megabytes(bytes)}`;
};
