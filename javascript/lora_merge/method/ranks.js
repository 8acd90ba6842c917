/* How many ranks are kept: the ways to say it. */

/**
 * The modes, and what each is called.
 * @type {[string, string][]}
 */
export const RANKS = [
    ["auto", "Automatic"],
    ["lossless", "Lossless"],
    ["rank", "A rank"],
    ["energy", "Share of energy kept"],
    ["error", "Error allowed"],
    ["budget", "File size"],
];

/**
 * What the number of a mode counts.
 * @type {Record<string, string>}
 */
export const RANK_UNITS = { rank: "ranks", energy: "of 1", error: "of 1", budget: "MB" };

/**
 * The number that a mode begins with.
 * @type {Record<string, number>}
 */
export const RANK_START = { rank: 32, energy: 0.99, error: 0.05, budget: 50 };
