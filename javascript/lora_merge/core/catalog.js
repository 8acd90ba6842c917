/* What the server knows and the tab offers: methods, families, presets, namings. */

/** @typedef {import("../types.js").InitReply} InitReply */

export class Catalog {
    /** @param {InitReply} known the server's answer to "init" */
    constructor(known) {
        this.methods = known.methods;
        this.families = known.families;
        this.usual_family = known.usual_family;
        this.hints = known.hints;
        this.presets = known.presets;
        this.can_generate = known.can_generate;
        this.settings = known.settings;
        this.namings = known.namings;
        this.warnings = known.warnings;
        /** the methods by name */
        this.titles = Object.fromEntries(known.methods.map((method) => [method.name, method]));
    }

    /** @param {string} name of a method; the first of all for one that there is not */
    method(name) {
        return this.titles[name] || this.methods[0];
    }

    /** @param {string} name of a method */
    title(name) {
        return this.titles[name] ? this.titles[name].title : name;
    }

    /** The methods as a menu takes them, in their groups. */
    methodOptions() {
        const groups = [...new Set(this.methods.map((method) => method.group))];
        const of = (group) => this.methods.filter((method) => method.group === group);
        return groups.map((group) => ({
            label: group,
            options: of(group).map((method) => [method.name, method.title]),
        }));
    }
}
