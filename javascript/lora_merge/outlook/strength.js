/* How strong each source goes into the merge: |ratio| · ‖ΔW‖ with its block weights, from what is measured
   already. */

import { letterOf } from "../core/letters.js";

const MUCH = 0.8;

/**
 * The ratio of a text encoder: its own, the one for all of them, or, where that is empty, the row's.
 * @param {import("../types.js").Row} row
 * @param {number} encoder counted from 1
 */
export const encoderRatio = (row, encoder) => {
    const te = /** @type {(number | null)[] | null} */ (row.te);
    const own = te ? te[Math.min(encoder, te.length) - 1] : null;
    return own === null || own === undefined ? row.ratio : own;
};

/**
 * How strong one source goes in: its block energies add up to 1, weights scale each block, and a block may
 * hold several text encoders.
 * @param {import("../types.js").Row} row
 * @param {any} looked what was measured of it
 * @param {number} factor the ratio of its group
 */
export const strengthOf = (row, looked, factor) => {
    const weight = (block) => (row.blocks[block] === undefined ? 1 : row.blocks[block]);
    let energy = 0;
    for (const [block, share] of Object.entries(looked.block_energy)) {
        const encoders = Object.entries((looked.encoder_energy || {})[block] || {});
        const rest = encoders.reduce((left, [, part]) => left - part, share);
        const scaled = encoders.reduce(
            (sum, [encoder, part]) => sum + part * encoderRatio(row, Number(encoder)) ** 2,
            Math.max(0, rest) * row.ratio ** 2,
        );
        energy += weight(block) ** 2 * scaled;
    }
    return Math.abs(factor) * looked.norm * Math.sqrt(energy);
};

/**
 * How strong each source goes in, in one sentence.
 * @param {import("../types.js").TabState} data
 * @param {import("../types.js").Row[]} rows those that are used
 * @param {Record<string, any>} looked what was measured, by key
 * @returns {{text: string, title?: string} | null} null while something is being measured; an empty text
 *   where there is nothing to compare
 */
export const strengthsLine = (data, rows, looked) => {
    const looks = rows.map((row) => looked[row.key]);
    if (rows.length < 2 || looks.some((look) => look && look.problem)) return { text: "" };
    if (looks.some((look) => !look)) return null;
    const found = rows.map((row, index) => {
        const group = row.group && data.groups[row.group];
        return {
            letter: letterOf(data.sources.indexOf(row)),
            norm: looks[index].norm,
            size: strengthOf(row, looks[index], group && Number.isFinite(group.ratio) ? group.ratio : 1),
        };
    });
    const total = found.reduce((sum, one) => sum + one.size, 0);
    if (!(total > 0)) return { text: "" };
    const most = found.reduce((best, one) => (one.size > best.size ? one : best));
    const text = found.map((one) => `${one.letter} ${Math.round((100 * one.size) / total)} %`).join(" · ");
    const norms = found.map((one) => `${one.letter} ${Number(one.norm.toPrecision(3))}`).join(", ");
    const mostly = most.size / total > MUCH ? `; mostly ${most.letter}` : "";
    return {
        text: `strength at these ratios: ${text}${mostly}`,
        title: `|ratio| × norm of each. Norms at ratio 1: ${norms}`,
    };
};
