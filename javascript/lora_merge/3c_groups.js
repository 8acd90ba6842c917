"use strict";

/* Levels: sources of one letter are merged first, by a method of their own, and enter the merge as one. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el, button } = space;
    const small = "lm-button lm-small";
    const OFFERED = ["A", "B", "C", "D"];

    /* four, and whatever a recipe has beyond them */
    space.groupsOf = (sources) => [...new Set([...OFFERED, ...sources.map((row) => row.group).filter(Boolean)])].sort();

    class Groups {
        constructor(app) {
            this.app = app;
            this.saved = {};
            this.box = el("div", { class: "lm-levels" });
        }

        get data() {
            return this.app.state.data;
        }

        members(letter) {
            return this.app.state.used().filter((row) => row.group === letter);
        }

        render() {
            const used = space.groupsOf(this.data.sources).filter((letter) => this.data.sources.some((row) => row.group === letter));
            this.box.replaceChildren(...used.map((letter) => this.level(letter)));
        }

        level(letter) {
            const group = (this.data.groups[letter] = this.data.groups[letter] || { method: "weighted_sum", ratio: 1 });
            group.knobs = group.knobs || {};
            const ratio = el("input", { type: "number", step: 0.05, value: group.ratio, class: "lm-number", "aria-label": `Ratio of group ${letter}`, oninput: () => Number.isFinite(ratio.valueAsNumber) && ((group.ratio = ratio.valueAsNumber), this.app.state.changed("value", ratio)) });
            const method = this.app.titles[group.method] || this.app.known.methods[0];
            const given = (group.knobs[method.name] = group.knobs[method.name] || {});
            const names = this.data.sources.map((row, index) => (row.group === letter ? space.letter(index) : "")).filter(Boolean);
            const knobs = method.knobs.map((knob) => space.knob(knob, given, `of group ${letter}`, (origin) => this.app.state.changed("value", origin)));
            return el("div", { class: "lm-level", role: "group", "aria-label": `Group ${letter}` },
                el("div", { class: "lm-line" },
                    el("b", {}, `Group ${letter}`), el("span", { class: "lm-dim" }, `${names.join(" + ")} merged first, by`),
                    space.select(this.app.methodOptions(), method.name, (value) => ((group.method = value), this.app.state.changed("rows")), { "aria-label": `Method of group ${letter}` }),
                    el("label", {}, "ratio ", ratio),
                    el("span", { class: "lm-grow" }),
                    button("Save this level", () => this.save(letter), { class: small, title: "Save the group alone as a LoRA, to try it or to go back to it" }),
                    this.app.known.can_generate ? button("Compare this level", () => this.compare(letter), { class: small, title: "The comparison in txt2img shows this group alone: its sources, their stack, its merge" }) : null,
                    this.saved[letter] ? button("Use the saved file instead", () => this.collapse(letter), { class: small, title: "Put the saved file into the place of the group" }) : null),
                knobs.length ? el("div", { class: "lm-fields lm-knobs" }, ...knobs) : null);
        }

        /* the group alone, exactly as the merge takes it */
        state(letter) {
            const group = this.data.groups[letter];
            const sources = this.members(letter).map((row) => ({ ...row, group: "" }));
            const { template, folder } = this.data.output;
            const name = template.includes("{sources}") ? template : `${template.replace(/(_?v?\{n\})?$/, "")}_level-${letter}_v{n}`;
            const output = { template: name, folder, overwrite: false, triggers: null, notes: "", based_on: "" };
            return { ...this.data, sources, groups: {}, method: group.method, knobs: group.knobs, rank: { mode: "auto", value: null }, conv_rank: null, prune: 0, seed: 0, output };
        }

        async save(letter) {
            if (!this.members(letter).length) return void this.app.say(`Group ${letter} has no LoRA yet.`);
            const result = await this.app.output.merge(this.state(letter));
            if (!result) return;
            this.saved[letter] = { key: result.key, name: result.output.replace(/\.safetensors$/, ""), of: this.content(letter) };
            this.app.say(`Level ${letter} is saved as ${result.output}.`);
            this.render();
        }

        compare(letter) {
            this.app.compareOnly(this.state(letter));
            this.app.say(`The comparison in txt2img now shows group ${letter} alone, until something is changed here.`);
            this.app.pictures.compare();
        }

        /* what the saved file of a level was made of; its ratio is not part of it */
        content(letter) {
            const { ratio, ...group } = this.data.groups[letter];
            return JSON.stringify([this.members(letter), group]);
        }

        collapse(letter) {
            const { key, name, of } = this.saved[letter];
            if (of !== this.content(letter)) return void this.app.say(`Group ${letter} was changed since it was saved; save the level again.`, true);
            const first = this.data.sources.find((row) => row.group === letter);
            const one = this.app.state.row(this.data.next++, { key, name, ratio: this.data.groups[letter].ratio });
            this.data.sources = this.data.sources.flatMap((row) => (row === first ? [one] : row.group === letter ? [] : [row]));
            delete this.saved[letter];
            this.app.state.changed("rows");
        }
    }

    space.Groups = Groups;
})();
