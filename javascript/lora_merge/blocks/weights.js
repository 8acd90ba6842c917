/* The arithmetic of block weights: a row is {block: weight}, and a block that is not in it has 1. */

/** @typedef {Record<string, any>} Weights */

/**
 * A weight with at most three decimals.
 * @param {number} value
 */
export const thousandths = (value) => Math.round(value * 1000) / 1000;

/**
 * The weight of a block.
 * @param {Weights} weights
 * @param {string} block
 */
export const weightOf = (weights, block) => (weights[block] === undefined ? 1 : weights[block]);

/**
 * 1 − x of every block but the rest, which no list has.
 * @param {Weights} weights
 * @param {string[]} blocks all of them
 * @returns {Weights}
 */
export const complementOf = (weights, blocks) => {
    const found = {};
    for (const block of blocks) {
        if (block === "OTHER") continue;
        const value = thousandths(1 - weightOf(weights, block));
        if (value !== 1) found[block] = value;
    }
    return found;
};

/**
 * The same weight for every block but the rest.
 * @param {number} value
 * @param {string[]} blocks all of them
 * @returns {Weights}
 */
export const allAt = (value, blocks) =>
    Object.fromEntries(
        blocks.filter((block) => block !== "OTHER" && value !== 1).map((block) => [block, value]),
    );

/**
 * What a list or a preset says, as it is kept: numbers, and none that is 1.
 * @param {Weights} weights
 * @returns {Weights}
 */
export const tidied = (weights) =>
    Object.fromEntries(
        Object.entries(weights)
            .map(([block, value]) => [block, Number(value)])
            .filter(([, value]) => Number.isFinite(value) && value !== 1),
    );
