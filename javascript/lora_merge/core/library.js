/* The LoRAs in the folders, as far as their headers are read, and the energies that were measured. */

/** @typedef {import("../types.js").Item} Item */
/** @typedef {import("../types.js").LibraryReply} LibraryReply */
/** @typedef {import("../types.js").Row} Row */

const filled = (item) => ({
    alias: item.name,
    folder: "",
    family: "",
    candidates: item.family ? [item.family] : [],
    kinds: [],
    rank: [0, 0],
    te: false,
    convolutions: false,
    tags: [],
    preview: "",
    problem: "",
    marks: [],
    ...item,
    blocks: item.blocks ? item.blocks.split(" ") : [],
});

export class Library {
    /**
     * @param {import("./state.js").State} state what is set up
     * @param {(op: string, fields: object) => Promise<any>} ask of the server; null where it refused
     */
    constructor(state, ask) {
        this.state = state;
        this.ask = ask;
        /** @type {Item[]} */
        this.items = [];
        /** headers read, and how many there are */
        this.scan = { done: 0, total: 0 };
        this.since = "";
        /** @type {Record<string, any>} what was measured of a LoRA, by its key */
        this.looked = {};
        /** @type {((touched: Set<string>) => void)[]} */
        this.listeners = [];
    }

    /** @param {(touched: Set<string>) => void} work called with the keys that are not as they were */
    listen(work) {
        this.listeners.push(work);
    }

    /**
     * @param {string} key of a LoRA
     * @returns {Item | undefined} it; undefined where it is not in the folders
     */
    item(key) {
        return key ? this.byKey().get(key) : undefined;
    }

    byKey() {
        if (this.mapped !== this.items) {
            this.mapped = this.items;
            this.map = new Map(this.items.map((item) => [item.key, item]));
        }
        return this.map;
    }

    /**
     * The family of what is set up.
     * @param {Row} [but] a row that does not count, as when another LoRA is chosen for it
     */
    family(but) {
        const rows = this.state.data.sources.filter((row) => row !== but);
        const items = rows.map((row) => this.item(row.key)).filter(Boolean);
        const sure = items.find((item) => item.family);
        const first = items[0];
        if (sure) return sure.family;
        return this.state.data.family || (first && first.candidates ? first.candidates[0] || "" : "");
    }

    /**
     * Take the list, or what changed of it.
     * @param {LibraryReply} reply the server's
     * @returns {Set<string>} the keys that are not as they were
     */
    take(reply) {
        this.scan = { done: reply.done, total: reply.total };
        this.since = reply.since;
        const touched = new Set([...reply.items.map((item) => item.key), ...reply.gone]);
        if (touched.size || reply.full) {
            const same = reply.full ? [] : this.items.filter((item) => !touched.has(item.key));
            this.items = [...same, ...reply.items.map(filled)];
        }
        return touched;
    }

    /** @param {boolean} look into the folders, not only at what is read already */
    async refresh(look) {
        clearTimeout(this.again);
        const reply = await this.ask("library", { refresh: Boolean(look), since: this.since || "" });
        if (!reply) return;
        const touched = this.take(reply);
        for (const work of this.listeners) work(touched);
        if (reply.done < reply.total) this.again = setTimeout(() => this.refresh(false), 500);
    }
}
