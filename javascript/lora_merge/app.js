/* The whole tab: makes the panels and gives each what it needs. */

import { Analysis } from "./analysis/analysis.js";
import { Grid } from "./blocks/grid.js";
import { Catalog } from "./core/catalog.js";
import { button, el, find, keepFocus, put } from "./core/dom.js";
import { proven } from "./core/format.js";
import { Library } from "./core/library.js";
import { Panels } from "./core/panels.js";
import { State } from "./core/state.js";
import { stay } from "./core/stay.js";
import { Below } from "./history/below.js";
import { Method } from "./method/method.js";
import { Output } from "./outlook/output.js";
import { comparePanel } from "./outlook/seeing.js";
import { Pictures } from "./pictures/pictures.js";
import { Sources } from "./sources/sources.js";

/* how long a message stays */
const SHOWN = 8000;

const SHOWN_BAD = 60000;

export class App {
    /**
     * @param {HTMLElement} root where the tab is drawn
     * @param {import("./types.js").InitReply} known the server's answer to "init"
     * @param {import("./types.js").LibraryReply} library its answer to "library"
     * @param {import("./core/bridge.js").Bridge} bridge to the server
     */
    constructor(root, known, library, bridge) {
        this.bridge = bridge;
        this.message = el("div", { class: "lm-message", role: "status", "aria-live": "polite" });
        this.catalog = new Catalog(known);
        this.state = new State(known.settings, keepFocus);
        if (!this.catalog.titles[this.state.data.method]) this.state.data.method = "weighted_sum";
        this.library = new Library(this.state, (op, fields) => this.ask(op, fields));
        this.library.take(library);
        const needs = this.needs();
        this.sources = new Sources(needs);
        this.grid = new Grid(needs);
        this.methodPanel = new Method(needs);
        this.output = new Output(needs, this.message, () => this.sources.add());
        this.pictures = new Pictures(needs);
        this.panels = new Panels("About this merge", this.offered(needs));
        const place = el("div", { class: "lm-see-place" }, this.panels.box);
        this.columns = el(
            "div",
            { class: "lm-columns" },
            el("div", { class: "lm-main" }, this.sources.box, this.grid.box, this.methodPanel.box),
            place,
        );
        const skip = button("Go to Merge", () => this.output.bar.go.focus(), { class: "lm-button lm-skip" });
        root.replaceChildren(skip, this.columns, this.output.bar.box);
        stay(root, place, this.output.bar.box);
        root.addEventListener("keydown", (event) => this.key(event));
        this.library.listen((touched) => this.relisted(touched));
        this.state.listen(() => {
            this.compared = null;
            if (this.message.classList.contains("lm-bad")) this.silent();
            this.tellScripts();
        });
        this.tellScripts();
        if (known.warnings.length) this.say(known.warnings.join(" "), true);
        this.output.resume();
    }

    /**
     * What one looks at beside what one does; each panel is made when it is first opened.
     * @param {import("./core/needs.js").Needs} needs
     * @returns {import("./core/panels.js").Panel[]}
     */
    offered(needs) {
        const below = (name, hint) => ({
            name,
            hint,
            make: () => this.kept().place(name),
            shown: () => this.kept().show(name),
        });
        return [
            {
                name: "Outcome",
                hint: "What will come out, and what to know before saving",
                make: () => this.output.outlook.box,
            },
            {
                name: "Understand",
                hint: "Who dominates where, what fights, what a rank costs, what to do",
                make: () => (this.analysis = new Analysis(needs)).box,
            },
            {
                name: "Compare",
                hint: "Pictures of the sources, their stack and the merge",
                make: () => comparePanel(needs, this.pictures.strip, this.kept().place("Compare")),
                shown: () => this.kept().show("Compare"),
            },
            below("History", "Every merge with its recipe and its proof"),
            below("Recipes", "Set-ups that are kept by a name"),
            below("Presets", "Block weights that are kept by a name"),
            below("Tools", "Look into one LoRA, resize, bake, convert it"),
        ];
    }

    /* history, recipes, presets and tools are one thing that draws one of them at a time */
    kept() {
        this.below = this.below || new Below(this.needs());
        return this.below;
    }

    /**
     * What panels are given. They are made one after another and reach each other when something happens, so
     * each name is looked up then.
     * @returns {import("./core/needs.js").Needs}
     */
    needs() {
        const app = this;
        return {
            state: this.state,
            catalog: this.catalog,
            library: this.library,
            ask: (op, fields) => this.ask(op, fields),
            request: (op, fields) => this.bridge.ask(op, fields),
            say: (text, bad) => this.say(text, bad),
            said: () => (this.message.firstChild ? this.message.firstChild.textContent : ""),
            use: (state, from, lacking) => this.use(state, from, lacking),
            open: (which) => this.open(which),
            change: (title, changes) => this.change(title, changes),
            addSource: (key) => this.addSource(key),
            verify: (key) => this.verify(key),
            afterSave: () => this.afterSave(),
            setup: (more) => this.setup(more),
            tellScripts: (more) => this.tellScripts(more),
            compareOnly: (state) => this.compareOnly(state),
            merge: (state) => this.output.merge(state),
            follow: (started, then) => this.output.follow(started, then),
            saved: (result) => this.output.saved(result),
            working: () => this.output.job !== null,
            weigh: () => this.output.weigh(),
            useTag: (tag, text) => this.output.useTag(tag, text),
            recheck: () => this.output.recheck(),
            compare: (name) => this.pictures.compare(name),
            preview: () => (this.panels.show("Compare"), this.pictures.preview()),
            see: (panel) => this.panels.show(panel),
            savePreset: (row) => (this.panels.show("Presets"), this.below.savePreset(row)),
            refreshHistory: () => this.below && this.below.refresh(),
            validate: (entry) => (this.panels.show("History"), this.below.validate(entry)),
            held: (row) => this.sources.held(row),
            pick: (anchor, place, choose, more) => this.sources.picker.open(anchor, place, choose, more),
            get grid() {
                return app.grid;
            },
        };
    }

    key(event) {
        const command = event.ctrlKey || event.metaKey;
        const typing = /^(INPUT|TEXTAREA)$/.test(event.target.tagName);
        const letter = event.key.toLowerCase();
        if (command && event.key === "Enter") this.output.merge();
        else if (command && !typing && letter === "z") event.shiftKey ? this.state.redo() : this.state.undo();
        else if (command && !typing && letter === "y") this.state.redo();
        else return;
        event.preventDefault();
        event.stopPropagation();
    }

    setup(more) {
        return JSON.stringify({ ...(this.compared || this.state.data), ...more });
    }

    /* the scripts of txt2img and img2img read what is set up from a field of their own */
    tellScripts(more) {
        const text = this.setup(more);
        for (const tab of ["txt2img", "img2img"]) {
            put(find(`#lora_merge_setup_${tab} textarea, #lora_merge_setup_${tab} input`), text);
        }
    }

    compareOnly(state) {
        this.compared = state;
        this.tellScripts();
    }

    async ask(op, fields) {
        try {
            return await this.bridge.ask(op, fields);
        } catch (error) {
            this.say(error.message, true);
            return null;
        }
    }

    /* in the bar, over the name of the file: it covers nothing that is used, and moves nothing. What went
       wrong stays until something is changed, for a minute at most */
    say(text, bad) {
        clearTimeout(this.silence);
        const dismiss = button("✕", () => this.silent(), {
            class: "lm-button lm-small lm-icon",
            "aria-label": "Dismiss",
        });
        this.message.replaceChildren(el("span", {}, text), dismiss);
        this.message.classList.toggle("lm-bad", Boolean(bad));
        this.silence = setTimeout(() => this.silent(), bad ? SHOWN_BAD : SHOWN);
    }

    silent() {
        clearTimeout(this.silence);
        this.message.replaceChildren();
        this.message.classList.remove("lm-bad");
    }

    /* rows are drawn anew only where one of them is concerned: nobody is typing into a row that is being
       read */
    relisted(touched) {
        const { picker } = this.sources;
        if (touched.has(this.output.result.key)) this.output.recheck();
        if (!picker.box.hidden) picker.filter(true);
        if (!this.state.data.sources.some((row) => touched.has(row.key))) return;
        for (const key of touched) delete this.library.looked[key];
        keepFocus(() => {
            if (picker.box.hidden) this.sources.render();
            this.grid.render();
        });
        this.output.replan();
    }

    async change(title, changes) {
        const reply = await this.ask("apply", { state: this.state.data, changes });
        if (!reply) return;
        this.state.replace(reply.state);
        this.say(`${title}: done. Ctrl+Z takes it back.`);
    }

    async open(which) {
        const { name, ...asked } = which;
        const reply = await this.ask("open", asked);
        if (!reply) return false;
        return this.use(reply.state, which, reply.notes);
    }

    /* `from` is the history's entry it comes from, `lacking` what differs from then */
    use(state, from = {}, lacking) {
        const rows = state.sources.map((row) => this.state.row(this.state.data.next++, row));
        const gone = rows.filter((row) => !row.key).map((row) => row.name);
        const notes = lacking || gone.map((name) => `${name} is not in the LoRA folders`);
        const based = { based_on: from.entry || "", based_on_name: from.name || "" };
        const output = { ...this.state.data.output, triggers: null, ...based };
        this.state.replace({ ...state, sources: rows, output });
        const well = "Opened; change what you like and merge again. Ctrl+Z takes it back.";
        this.sources.box.scrollIntoView({ block: "nearest" });
        this.say(notes.length ? `Opened, but ${notes.join("; ")}.` : well, notes.length > 0);
        return !gone.length;
    }

    addSource(key) {
        const item = this.library.item(key);
        const empty = this.state.data.sources.find((row) => !row.key);
        if (empty) {
            empty.key = key;
            empty.name = item ? item.name : "";
            this.state.changed("rows");
        } else this.state.add({ key, name: item ? item.name : "" });
    }

    async verify(key) {
        const reply = await this.ask("verify", { key });
        if (!reply) return;
        await this.output.follow(reply, (result) => this.say(`Verified: ${proven(result)}.`));
    }

    async afterSave() {
        await this.library.refresh(true);
        if (this.below) this.below.refresh();
        /* the cards are cached on the server; only this hidden button makes them anew */
        for (const tab of ["txt2img", "img2img"]) {
            const refresh = find(`#${tab}_lora_extra_refresh_internal`);
            if (refresh) refresh.click();
        }
    }
}
