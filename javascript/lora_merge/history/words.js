/* What the history says of a merge, in words. */

import { numberText } from "../core/format.js";

/**
 * How many there are: "1 merge", "2 merges".
 * @param {number} count
 * @param {string} one
 * @param {string} [many] where it is not the same with an s
 */
export const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/**
 * The proof, short enough for a list.
 * @param {string | undefined} proof as the report has it
 */
export const shortProof = (proof) =>
    (proof || "").replace("asked = saved", "exact").replace(/^saved exactly |, to .*$/g, "");

/**
 * The sources of an entry with their ratios, as in "ink 0.5 · mira 0.5".
 * @param {{name?: string, ratio?: number}[]} sources
 */
export const sourcesText = (sources) =>
    sources.map((source) => `${source.name} ${numberText(source.ratio)}`).join(" · ");

/** What a state of a validation is called, and its mark. */
export const VALIDATED = {
    validated: ["✓", "validated"],
    revise: ["✕", "to revise"],
    open: ["○", "not validated"],
};

/* what to change when a step has failed, as the practice has it */
const CHANGES = {
    loads: [
        "Save it once more with names that every host loads: Tools, Names.",
        "Sources of another base model do not load: Tools, Inspect, says which it is.",
    ],
    pictures: [
        "One source too strong: lower it more than feels needed.",
        "Muddy: another method, DARE or TIES. A lost character: raise its ratio, or its blocks.",
        "Artefacts that no source has: a lower total, 0.4 and 0.4.",
    ],
    strengths: [
        "It breaks at 1: lower the total. It is weak at 1: raise it.",
        "Sweep the total and compare the files.",
    ],
    prompts: [
        "It acts without its words: lower the stronger source, or its OUT blocks.",
        "One source swallows the other: the balance, 0.6 and 0.4 or further.",
    ],
    speed: [
        "A smaller rank loads faster: Tools, Rank.",
        "Fewer sources, or a group merged first, make a smaller file.",
    ],
};

/**
 * What to change after a step of the validation has failed.
 * @param {string} step
 * @returns {string[]}
 */
export const changesFor = (step) => CHANGES[step] || [];

/**
 * A test prompt as it is typed: the trigger words in their place, the LoRA's tag behind.
 * @param {string} text with `{trigger}`, or `{empty}`
 * @param {{triggers?: string, prompt?: string}} merge its trigger words and its tag
 */
export const promptText = (text, { triggers = "", prompt = "" }) => {
    const words = text === "{empty}" ? "" : text.replaceAll("{trigger}", triggers.trim());
    return [...words.split(","), prompt]
        .map((part) => part.trim())
        .filter(Boolean)
        .join(", ");
};

/**
 * The values of a sweep as they are typed, "0.2, 0.4"; names stay as they are.
 * @param {string} text
 * @returns {(number | boolean | string)[]}
 */
export const valuesOf = (text) =>
    text
        .split(/[,;\s]+/)
        .filter(Boolean)
        .map((part) => {
            const known = { on: true, off: false }[part.toLowerCase()];
            return known !== undefined ? known : Number.isFinite(Number(part)) ? Number(part) : part;
        });

/**
 * Ranks for a sweep, as they are typed: the last powers of two that cut something.
 * @param {number} most the largest rank that can come out, 0 where it is not known
 */
export const usualRanks = (most) =>
    [1, 2, 4, 8, 16, 32, 64, 128]
        .filter((rank) => rank < (most || 100))
        .slice(-4)
        .join(", ");
