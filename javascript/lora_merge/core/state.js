/* What the person has set up. It lives in this window of the browser, survives reloads, and every change can
   be undone. A new window begins with what was set up last in any. */

import { later } from "./timing.js";

const KEY = "lora-merge-state-1";

/* this window's own first, then what any window of the browser has set up last */
const PLACES = [() => sessionStorage, () => localStorage];

const MOST = 100;

/**
 * What could be the letter of a source becomes the next free number; state.named is the same rule.
 * @param {string[]} given names of groups
 * @returns {Record<string, string>} what each is called
 */
export const groupNames = (given) => {
    const names = [...new Set(given)];
    const taken = names.filter((name) => !/^[A-Za-z]{1,2}$/.test(name));
    let next = 0;
    const free = () => {
        do next += 1;
        while (taken.includes(String(next)));
        return String(next);
    };
    return Object.fromEntries(names.map((name) => [name, taken.includes(name) ? name : free()]));
};

export class State {
    /**
     * @param {import("../types.js").Settings} settings of the host: what a fresh merge begins with
     * @param {(work: () => void) => void} redraw runs the work that draws what has changed
     */
    constructor(settings, redraw = (work) => work()) {
        this.settings = settings;
        this.redraw = redraw;
        this.listeners = [];
        this.past = [];
        this.future = [];
        this.data = this.load() || this.fresh();
        this.before = JSON.stringify(this.data);
        this.note = later(() => this.remember(), 350);
    }

    fresh() {
        return {
            version: 1,
            next: 3,
            sources: [this.row(1), this.row(2)],
            groups: {},
            method: "weighted_sum",
            knobs: {},
            rank: { mode: "auto", value: null },
            conv_rank: null,
            prune: 0,
            prune_below: 0,
            precision: this.settings.precision,
            names: this.settings.names,
            seed: 0,
            family: "",
            defaults: this.defaults(),
            output: {
                template: this.settings.template,
                folder: this.settings.folder,
                overwrite: false,
                triggers: null,
                notes: "",
                based_on: "",
            },
        };
    }

    row(id, fields) {
        return {
            id,
            key: "",
            name: "",
            ratio: 0.5,
            te: null,
            on: true,
            group: "",
            role: "",
            blocks: {},
            elements: "",
            ...fields,
        };
    }

    load() {
        for (const kept of PLACES)
            try {
                const found = JSON.parse(kept().getItem(KEY));
                if (found && found.version === 1 && Array.isArray(found.sources))
                    return this.renewed({ ...this.fresh(), ...found }, found.defaults);
            } catch {
                /* nothing is kept there, or nothing that can be read */
            }
        return null;
    }

    /* what was left as the settings had it follows them when they change; groups had letters in 0.1 */
    renewed(data, before) {
        const names = groupNames([
            ...data.sources.map((row) => row.group).filter(Boolean),
            ...Object.keys(data.groups),
        ]);
        for (const row of data.sources) if (row.group) row.group = names[row.group];
        data.groups = Object.fromEntries(
            Object.entries(data.groups).map(([name, group]) => [names[name], group]),
        );
        if (before) {
            for (const name of ["template", "folder"])
                if (data.output[name] === before[name]) data.output[name] = this.settings[name];
            for (const name of ["precision", "names"])
                if (data[name] === before[name]) data[name] = this.settings[name];
        }
        return { ...data, defaults: this.defaults() };
    }

    defaults() {
        const { template, folder, precision, names } = this.settings;
        return { template, folder, precision, names };
    }

    store() {
        for (const kept of PLACES)
            try {
                kept().setItem(KEY, JSON.stringify(this.data));
            } catch {
                /* private windows keep nothing; the tab works all the same */
            }
    }

    listen(work) {
        this.listeners.push(work);
    }

    /* what: "rows" (another structure) or "value" (the same controls, other numbers) */
    changed(what, origin) {
        this.store();
        /* a drag is one step to undo, every other change is one of its own */
        if (what === "rows") this.remember();
        else this.note();
        this.redraw(() => this.listeners.forEach((work) => work(what, origin)));
    }

    /* a change that is one step to undo, however soon it follows another */
    once(work, what = "value") {
        this.remember();
        work();
        this.changed(what);
        this.remember();
    }

    remember() {
        const now = JSON.stringify(this.data);
        if (now === this.before) return;
        this.past.push(this.before);
        if (this.past.length > MOST) this.past.shift();
        this.before = now;
        this.future = [];
    }

    undo() {
        this.remember();
        if (this.past.length) this.go(this.past, this.future);
    }

    redo() {
        if (this.future.length) this.go(this.future, this.past);
    }

    go(from, to) {
        to.push(this.before);
        this.before = from.pop();
        this.data = JSON.parse(this.before);
        this.store();
        this.redraw(() => this.listeners.forEach((work) => work("rows")));
    }

    replace(fields) {
        Object.assign(this.data, fields);
        this.changed("rows");
    }

    add(fields) {
        const row = this.row(this.data.next++, fields);
        this.data.sources.push(row);
        this.changed("rows");
        return row;
    }

    remove(row) {
        this.data.sources = this.data.sources.filter((other) => other !== row);
        this.changed("rows");
    }

    move(row, step) {
        const rows = this.data.sources;
        const from = rows.indexOf(row);
        const to = from + step;
        if (to < 0 || to >= rows.length) return;
        rows.splice(from, 1);
        rows.splice(to, 0, row);
        this.changed("rows");
    }

    used() {
        return this.data.sources.filter((row) => row.on && row.key);
    }
}
