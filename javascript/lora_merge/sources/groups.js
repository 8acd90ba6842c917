/* Levels: the sources of a group are merged first, by a method of their own, and enter the merge as one.
   Groups have numbers, since sources have letters. */

import { button, el, select } from "../core/dom.js";
import { letterOf } from "../core/letters.js";
import { knobControl } from "../method/knob.js";

/** What it takes.
 * @typedef {Pick<import("../core/needs.js").Needs, "catalog"
 *     | "compare"
 *     | "compareOnly"
 *     | "merge"
 *     | "say"
 *     | "state">} GroupsNeeds
 */

const small = "lm-button lm-small";

const OFFERED = ["1", "2", "3", "4"];

/**
 * Four, and whatever a recipe has beyond them.
 * @param {import("../types.js").Row[]} sources
 * @returns {string[]}
 */
export const groupsOf = (sources) =>
    [...new Set([...OFFERED, ...sources.map((row) => row.group).filter(Boolean)])].sort();

export class Groups {
    /**
     * @param {GroupsNeeds} needs what it takes
     */
    constructor(needs) {
        this.needs = needs;
        this.saved = {};
        this.box = el("div", { class: "lm-levels" });
    }

    get data() {
        return this.needs.state.data;
    }

    members(label) {
        return this.needs.state.used().filter((row) => row.group === label);
    }

    render() {
        const used = groupsOf(this.data.sources).filter((label) =>
            this.data.sources.some((row) => row.group === label),
        );
        this.box.replaceChildren(...used.map((label) => this.level(label)));
    }

    level(label) {
        const group = (this.data.groups[label] = this.data.groups[label] || {
            method: "weighted_sum",
            ratio: 1,
        });
        group.knobs = group.knobs || {};
        const ratio = el("input", {
            type: "number",
            step: 0.05,
            value: group.ratio,
            class: "lm-number",
            "aria-label": `Ratio of group ${label}`,
            oninput: () =>
                Number.isFinite(ratio.valueAsNumber) &&
                ((group.ratio = ratio.valueAsNumber), this.needs.state.changed("value", ratio)),
        });
        const method = this.needs.catalog.titles[group.method] || this.needs.catalog.methods[0];
        const given = (group.knobs[method.name] = group.knobs[method.name] || {});
        const names = this.data.sources
            .map((row, index) => (row.group === label ? letterOf(index) : ""))
            .filter(Boolean);
        const knobs = method.knobs.map((knob) =>
            knobControl(knob, given, `of group ${label}`, (origin) =>
                this.needs.state.changed("value", origin),
            ),
        );
        return el(
            "div",
            { class: "lm-level", role: "group", "aria-label": `Group ${label}` },
            el(
                "div",
                { class: "lm-line" },
                el("b", {}, `Group ${label}`),
                el("span", { class: "lm-dim" }, `${names.join(" + ")} merged first, by`),
                select(
                    this.needs.catalog.methodOptions(),
                    method.name,
                    (value) => ((group.method = value), this.needs.state.changed("rows")),
                    { "aria-label": `Method of group ${label}` },
                ),
                el("label", {}, "ratio ", ratio),
                el("span", { class: "lm-grow" }),
                button("Save this level", () => this.save(label), {
                    class: small,
                    title: "Save the group alone as a LoRA, to try it or to go back to it",
                }),
                this.needs.catalog.can_generate
                    ? button("Compare this level", () => this.compare(label), {
                          class: small,
                          title:
                              "The comparison in txt2img shows this group alone: its sources, their " +
                              "stack, its merge",
                      })
                    : null,
                this.saved[label]
                    ? button("Use the saved file instead", () => this.collapse(label), {
                          class: small,
                          title: "Put the saved file into the place of the group",
                      })
                    : null,
            ),
            knobs.length ? el("div", { class: "lm-fields lm-knobs" }, ...knobs) : null,
        );
    }

    /* the group alone, exactly as the merge takes it; the other rows stay, switched off, so that no letter
       moves */
    state(label) {
        const group = this.data.groups[label];
        const sources = this.data.sources.map((row) =>
            row.group === label ? { ...row, group: "" } : { ...row, on: false },
        );
        const { template, folder } = this.data.output;
        const name = template.includes("{sources}")
            ? template
            : `${template.replace(/(_?v?\{n\})?$/, "")}_level-${label}_v{n}`;
        const output = { template: name, folder, overwrite: false, triggers: null, notes: "", based_on: "" };
        return {
            ...this.data,
            sources,
            groups: {},
            method: group.method,
            knobs: group.knobs,
            rank: { mode: "auto", value: null },
            conv_rank: null,
            prune: 0,
            prune_below: 0,
            seed: 0,
            output,
        };
    }

    async save(label) {
        if (!this.members(label).length) return void this.needs.say(`Group ${label} has no LoRA yet.`);
        const result = await this.needs.merge(this.state(label));
        if (!result) return;
        this.saved[label] = {
            key: result.key,
            name: result.output.replace(/\.safetensors$/, ""),
            of: this.content(label),
        };
        this.needs.say(`Level ${label} is saved as ${result.output}.`);
        this.render();
    }

    compare(label) {
        this.needs.compareOnly(this.state(label));
        this.needs.say(
            `The comparison in txt2img now shows group ${label} alone, until something is changed here.`,
        );
        this.needs.compare();
    }

    /* what the saved file of a level was made of; its ratio is not part of it */
    content(label) {
        const { ratio, ...group } = this.data.groups[label];
        return JSON.stringify([this.members(label), group]);
    }

    collapse(label) {
        const { key, name, of } = this.saved[label];
        if (of !== this.content(label))
            return void this.needs.say(
                `Group ${label} was changed since it was saved; save the level again.`,
                true,
            );
        const first = this.data.sources.find((row) => row.group === label);
        const one = this.needs.state.row(this.data.next++, {
            key,
            name,
            ratio: this.data.groups[label].ratio,
        });
        this.data.sources = this.data.sources.flatMap((row) =>
            row === first ? [one] : row.group === label ? [] : [row],
        );
        delete this.saved[label];
        this.needs.state.changed("rows");
    }
}
