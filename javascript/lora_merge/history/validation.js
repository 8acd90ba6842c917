/* The validation of a merge: five steps that fill themselves or are ticked by hand, and the test prompts. */

import { button, el } from "../core/dom.js";
import { fillPrompt } from "../pictures/prompt.js";
import { copyText } from "./clipboard.js";
import { VALIDATED, changesFor, promptText } from "./words.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "ask" | "catalog" | "compare" | "open" | "say">
 *   } ValidationNeeds
 */

const MARKS = { passed: "✓", failed: "✕", open: "○" };

const BY = { itself: "seen by itself", hand: "ticked by hand", "": "open" };

export class Validation {
    /**
     * @param {ValidationNeeds} needs what it takes
     * @param {any} entry of the history
     * @param {(state: string) => void} changed called when the merge is validated, or to be revised, anew
     */
    constructor(needs, entry, changed) {
        this.needs = needs;
        this.entry = entry;
        this.changed = changed;
        this.head = el("p", { class: "lm-step-state", role: "status" });
        this.steps = el("ol", { class: "lm-steps" });
        this.box = el(
            "div",
            { class: "lm-panel lm-validation", "aria-label": `Validation of ${entry.name}`, role: "group" },
            this.head,
            this.steps,
            this.prompts(),
        );
    }

    async load() {
        const reply = await this.needs.ask("validation", { entry: this.entry.id });
        if (reply) this.show(reply);
        return this;
    }

    show(reply) {
        const [mark, words] = VALIDATED[reply.state];
        const left = reply.steps.filter((step) => step.state === "open").length;
        this.head.className = `lm-step-state lm-is-${reply.state}`;
        this.head.textContent =
            `${mark} ${words}` +
            (reply.state === "open" ? `: ${left} of ${reply.steps.length} steps to go` : "");
        this.steps.replaceChildren(...reply.steps.map((step) => this.step(step)));
    }

    step(step) {
        const set = (state) => this.set(step, state, note.value);
        const note = el("input", {
            type: "text",
            placeholder: "Note",
            value: step.note,
            "aria-label": `Note on: ${step.title}`,
            onchange: () => this.noted(step, note.value),
        });
        const tick = (state, text) =>
            button(text, () => set(step.by === "hand" && step.state === state ? null : state), {
                class: "lm-button lm-small",
                "aria-pressed": String(step.by === "hand" && step.state === state),
                "aria-label": `${text}: ${step.title}`,
            });
        return el(
            "li",
            { class: `lm-step lm-is-${step.state}`, "data-step": step.step },
            el("span", { class: "lm-step-mark", "aria-hidden": "true" }, MARKS[step.state]),
            el(
                "div",
                { class: "lm-step-text" },
                el("b", {}, step.title),
                el("small", {}, ` ${BY[step.by]}`),
                el("div", { class: "lm-dim" }, step.said || step.asks),
                step.state === "failed" ? this.revise(step) : null,
            ),
            el("div", { class: "lm-step-acts" }, tick("passed", "Passed"), tick("failed", "Failed"), note),
        );
    }

    revise(step) {
        return el(
            "div",
            { class: "lm-revise" },
            el("b", {}, "Revise:"),
            el("ul", {}, ...changesFor(step.step).map((text) => el("li", {}, text))),
            button(
                "Load it and change it",
                () => this.needs.open({ entry: this.entry.id, name: this.entry.name }),
                {
                    class: "lm-button lm-small",
                },
            ),
        );
    }

    /* nothing is drawn: the press that took the keyboard out of the field may be on its way to a button */
    async noted(step, note) {
        await this.needs.ask("validation_set", {
            entry: this.entry.id,
            step: step.step,
            mark: step.state,
            note,
        });
    }

    async set(step, state, note) {
        const reply = await this.needs.ask("validation_set", {
            entry: this.entry.id,
            step: step.step,
            mark: state,
            note,
        });
        if (!reply) return;
        const name = document.activeElement && document.activeElement.getAttribute("aria-label");
        this.show(reply);
        const same = [...this.box.querySelectorAll("[aria-label]")].find(
            (node) => node.getAttribute("aria-label") === name,
        );
        if (same instanceof HTMLElement) same.focus({ preventScroll: true });
        this.changed(reply.state);
    }

    /* ------------------------------------------------------------ the test prompts */

    prompts() {
        const list = el("ol", { class: "lm-prompts" });
        const fill = async () => {
            if (!box.open || list.childElementCount) return;
            const reply = await this.needs.ask("test_prompts", {});
            const card = await this.needs.ask("card", { entry: this.entry.id, key: this.entry.key });
            if (reply) list.replaceChildren(...reply.prompts.map((one) => this.prompt(one, card || {})));
        };
        const box = el(
            "details",
            { ontoggle: fill },
            el("summary", {}, "Ten test prompts"),
            el(
                "p",
                { class: "lm-dim" },
                "The same seed and settings for each source, for the merge at 1, and for the stack.",
            ),
            this.needs.catalog.can_generate
                ? button("Compare them all in txt2img", () => this.needs.compare(this.entry.name), {
                      class: "lm-button lm-small",
                      title: 'Opens the comparison there; "Fill in the test prompts" takes all ten',
                  })
                : null,
            list,
        );
        return box;
    }

    prompt(one, merge) {
        const text = promptText(one.text, merge);
        const negative = promptText(one.negative, { triggers: merge.triggers });
        const said = el("span", { class: "lm-good-text", role: "status" });
        const copy = async () => {
            const whole = negative ? `${text}\nNegative prompt: ${negative}` : text;
            said.textContent = (await copyText(whole)) ? "Copied." : "";
        };
        return el(
            "li",
            {},
            el("b", {}, one.family),
            one.extreme ? el("small", {}, " unusual") : null,
            el("div", { class: "lm-prompt" }, el("bdi", {}, text || "(nothing)")),
            negative ? el("small", {}, "Negative: ", el("bdi", {}, negative)) : null,
            el(
                "div",
                { class: "lm-line" },
                button("Copy", copy, { class: "lm-button lm-small", "aria-label": `Copy: ${one.family}` }),
                this.needs.catalog.can_generate
                    ? button("To txt2img", () => fillPrompt(text, negative), {
                          class: "lm-button lm-small",
                          "aria-label": `To txt2img: ${one.family}`,
                      })
                    : null,
                said,
            ),
        );
    }
}
