/* The control of one setting of a method. */

import { el, rangeInput, select } from "../core/dom.js";

/**
 * The control of one knob.
 * @param {import("../types.js").KnobInfo} knob
 * @param {Record<string, any>} given where its value is kept
 * @param {string} of tells the knobs of groups from those of the merge; ""
 * @param {(origin?: HTMLElement) => void} changed
 * @returns {HTMLElement}
 */
export const knobControl = (knob, given, of, changed) => {
    const value = given[knob.name] === undefined ? knob.default : given[knob.name];
    const set = (next, origin) => {
        given[knob.name] = next;
        changed(origin);
    };
    const { title } = knob;
    const label = of ? `${title} ${of}` : title;
    let control;
    if (knob.kind === "choice")
        control = select(
            knob.choices.map((choice) => [choice, choice]),
            value,
            set,
            { "aria-label": label },
        );
    else if (knob.kind === "switch")
        control = el("input", {
            type: "checkbox",
            checked: value,
            "aria-label": label,
            onchange: (event) => set(event.target.checked),
        });
    else {
        /* a knob of the sources may have a value for each: a list, in the order of the rows */
        const list = Array.isArray(value) ? value : null;
        const one = list ? list[0] : value;
        const each = el("input", {
            type: "text",
            class: "lm-each",
            inputmode: "decimal",
            value: list ? list.join(", ") : "",
            placeholder: "one for each LoRA: 0.2, 0.4",
            title: "Leave it empty for one value for all",
            "aria-label": `${label}, one for each LoRA`,
            oninput: () => many(each),
        });
        const wrong = el(
            "small",
            { class: "lm-bad", role: "alert", hidden: true },
            `numbers from ${knob.minimum} to ${knob.maximum}, please; the last good ones stay`,
        );
        const many = (origin) => {
            const numbers = each.value
                .split(/[,;\s]+/)
                .filter(Boolean)
                .map(Number);
            const fine = numbers.every(
                (number) => Number.isFinite(number) && number >= knob.minimum && number <= knob.maximum,
            );
            each.setAttribute("aria-invalid", String(!fine));
            wrong.hidden = fine;
            if (!numbers.length) return set(Number(slider.value), origin);
            return fine && set(numbers.length > 1 ? numbers : numbers[0], origin);
        };
        const all = () => {
            each.value = "";
            each.setAttribute("aria-invalid", "false");
            wrong.hidden = true;
        };
        const box = el("input", {
            type: "number",
            min: knob.minimum,
            max: knob.maximum,
            step: knob.step,
            value: one,
            class: "lm-number",
            "aria-label": `${label}, exact`,
            oninput: () =>
                Number.isFinite(box.valueAsNumber) &&
                ((slider.value = box.value), all(), slider.mark(), set(box.valueAsNumber, box)),
        });
        const slider = rangeInput({
            min: knob.minimum,
            max: knob.maximum,
            step: knob.step,
            value: one,
            "aria-label": label,
            oninput: () => ((box.value = slider.value), all(), set(Number(slider.value), slider)),
        });
        control = el(
            "span",
            {},
            el("span", { class: "lm-line" }, slider, box),
            ...(knob.scope === "source" ? [each, wrong] : []),
        );
    }
    return el("label", {}, el("span", {}, title), control, el("small", { class: "lm-dim" }, knob.help));
};
