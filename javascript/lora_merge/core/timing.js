/* Waiting. */

/**
 * Put work off until nobody has asked for it for a while.
 * @param {(...given: any[]) => any} work
 * @param {number} wait in milliseconds
 * @returns {(...given: any[]) => void}
 */
export const later = (work, wait) => {
    let timer = 0;
    return (...given) => {
        clearTimeout(timer);
        timer = setTimeout(() => work(...given), wait);
    };
};

/**
 * Wait.
 * @param {number} wait in milliseconds
 */
export const pause = (wait) => new Promise((resolve) => setTimeout(resolve, wait));
