/* Each source has one letter and one colour everywhere. */

/* Okabe and Ito: told apart by colour-blind people too */
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999"];

/**
 * The colour of a source.
 * @param {number} index of its row
 */
export const colourOf = (index) => COLOURS[index % COLOURS.length];

/**
 * A … Z, AA, AB, …: of the row, whatever is off or grouped; recipe_edits.letter is the same rule.
 * @param {number} index
 * @returns {string}
 */
export const letterOf = (index) =>
    (index < 26 ? "" : letterOf(Math.floor(index / 26) - 1)) + String.fromCharCode(65 + (index % 26));
