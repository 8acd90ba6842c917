/* Numbers, sizes, times and rules in words, as people read them everywhere in the tab. */

/**
 * A size.
 * @param {number} bytes
 */
export const megabytes = (bytes) =>
    bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/**
 * A share with two decimals.
 * @param {number} value 1 is all
 * @param {number} [digits]
 */
export const percentText = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;

/**
 * Local time; today's without the date.
 * @param {string} text as the server writes it
 */
export const timeText = (text) => {
    const time = new Date(text);
    if (Number.isNaN(time.getTime())) return "";
    const two = (value) => String(value).padStart(2, "0");
    const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
    return (
        `${time.toDateString() === new Date().toDateString() ? "today" : day} ` +
        `${two(time.getHours())}:${two(time.getMinutes())}`
    );
};

/**
 * A number with at most three decimals.
 * @param {number} value
 */
export const numberText = (value) => String(Math.round(value * 1000) / 1000);

/**
 * A number as a table shows it; what is not known is a dash.
 * @param {number | null | undefined} value
 * @param {number} [digits] that count
 */
export const figure = (value, digits = 3) =>
    value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits)));

/**
 * With so many decimals, and without a minus before nothing.
 * @param {number | null | undefined} value
 * @param {number} digits
 */
export const fixed = (value, digits) =>
    value === null || value === undefined
        ? "–"
        : (Math.round(value * 10 ** digits) / 10 ** digits + 0).toFixed(digits);

/**
 * A share as a table shows it.
 * @param {number | null | undefined} value 1 is all
 * @param {number} [digits]
 */
export const share = (value, digits = 0) =>
    value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`;

/**
 * A rank policy in words, as RankPolicy.words has them.
 * @param {string} text
 */
export const policyWords = (text) => {
    const [kind, value] = String(text).split(":");
    const share = `${numberText(100 * Number(value))}% `;
    const words = {
        lossless: "lossless",
        sum: "the sum of the sources' ranks",
        energy: `${share}of every module`,
        error: `an error of ${share}in every module`,
        budget: `a file of ${String(value).replace("MB", " MB")}`,
    };
    return words[kind] || `rank ${kind}`;
};

/**
 * Proof and choice of a merge in one line: two sentences, never one number.
 * @param {Record<string, any>} report
 */
export const proven = (report) => [report.proof, report.choice].filter(Boolean).join("; ");

/**
 * About how long something takes still.
 * @param {number} seconds
 */
export const leftText = (seconds) =>
    seconds >= 90 ? `about ${Math.round(seconds / 60)} min` : `about ${Math.max(1, Math.ceil(seconds))} s`;
