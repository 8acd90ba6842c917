/* What a person opened stays open, over rows drawn anew and over reloads. */

const KEY = "lora-merge-folds";

/** @returns {Record<string, boolean>} */
const read = () => {
    try {
        return JSON.parse(localStorage.getItem(KEY)) || {};
    } catch {
        return {};
    }
};

/**
 * Whether a fold was left open.
 * @param {string} name
 * @param {boolean} [usual] where nobody has touched it
 */
export const wasOpen = (name, usual = false) => {
    const found = read()[name];
    return found === undefined ? usual : Boolean(found);
};

/**
 * Keep how a fold was left.
 * @param {string} name
 * @param {boolean} open
 */
export const leave = (name, open) => {
    try {
        localStorage.setItem(KEY, JSON.stringify({ ...read(), [name]: open }));
    } catch {
        /* private windows keep nothing */
    }
};
