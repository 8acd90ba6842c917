"use strict";

/* The whole tab: starts when the page has our root, and again when "Reload UI" gives a new one. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});
    const { el } = space;

    class App {
        constructor(root, known, library) {
            this.root = root;
            this.known = known;
            this.items = [];
            this.take(library);
            this.looked = {};
            this.titles = Object.fromEntries(known.methods.map((method) => [method.name, method]));
            this.state = new space.State(known.settings);
            if (!this.titles[this.state.data.method]) this.state.data.method = "weighted_sum";
            this.message = el("div", { class: "lm-message", role: "status", "aria-live": "polite" });
            this.sources = new space.Sources(this);
            this.grid = new space.Grid(this);
            this.methodPanel = new space.Method(this);
            this.output = new space.Output(this);
            this.analysis = new space.Analysis(this);
            this.pictures = new space.Pictures(this);
            this.below = new space.Below(this);
            root.replaceChildren(
                this.message,
                el("div", { class: "lm-columns" }, el("div", { class: "lm-main" }, this.sources.box, this.grid.box, this.pictures.strip, this.methodPanel.box, this.analysis.box), this.output.box),
                this.below.box,
            );
            root.addEventListener("keydown", (event) => this.key(event));
            this.state.listen(() => ((this.compared = null), this.tellScripts()));
            this.tellScripts();
            if (known.warnings.length) this.say(known.warnings.join(" "), true);
            this.output.resume();
        }

        key(event) {
            const command = event.ctrlKey || event.metaKey;
            if (command && event.key === "Enter") this.output.merge();
            else if (command && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.key.toLowerCase() === "z") event.shiftKey ? this.state.redo() : this.state.undo();
            else if (command && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.key.toLowerCase() === "y") this.state.redo();
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
            for (const tab of ["txt2img", "img2img"]) space.put(space.page().querySelector(`#lora_merge_setup_${tab} textarea, #lora_merge_setup_${tab} input`), text);
        }

        /* show a part of the merge to the comparison script, until something is changed */
        compareOnly(state) {
            this.compared = state;
            this.tellScripts();
        }

        /* ask the server; a refusal is shown and answered with null */
        async ask(op, fields) {
            try {
                return await space.bridge.ask(op, fields);
            } catch (error) {
                this.say(error.message, true);
                return null;
            }
        }

        /* over the page, so that nothing moves; what went wrong or asks for something stays until it is dismissed */
        say(text, bad) {
            clearTimeout(this.silence);
            const close = () => this.message.replaceChildren();
            this.message.replaceChildren(el("span", {}, text), space.button("✕", close, { class: "lm-button lm-small", "aria-label": "Dismiss" }));
            this.message.classList.toggle("lm-bad", Boolean(bad));
            if (!bad && typeof text === "string") this.silence = setTimeout(close, 12000);
        }

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

        /* of what is set up; `but` leaves one row out, as when another LoRA is chosen for it */
        family(but) {
            const items = this.state.data.sources.filter((row) => row !== but).map((row) => this.item(row.key)).filter(Boolean);
            const sure = items.find((item) => item.family);
            const first = items[0];
            return sure ? sure.family : this.state.data.family || (first && first.candidates ? first.candidates[0] || "" : "");
        }

        method() {
            return this.titles[this.state.data.method] || this.known.methods[0];
        }

        title(name) {
            return this.titles[name] ? this.titles[name].title : name;
        }

        methodOptions() {
            const groups = [...new Set(this.known.methods.map((method) => method.group))];
            return groups.map((group) => ({ label: group, options: this.known.methods.filter((method) => method.group === group).map((method) => [method.name, method.title]) }));
        }

        /* the list, or what changed of it; returns the keys that are not as they were */
        take(reply) {
            const fill = (item) => ({ alias: item.name, folder: "", family: "", candidates: item.family ? [item.family] : [], kinds: [], rank: [0, 0], te: false, tags: [], preview: "", problem: "", marks: [], ...item, blocks: item.blocks ? item.blocks.split(" ") : [] });
            this.scan = { done: reply.done, total: reply.total };
            this.since = reply.since;
            const touched = new Set([...reply.items.map((item) => item.key), ...reply.gone]);
            if (touched.size || reply.full) this.items = [...(reply.full ? [] : this.items.filter((item) => !touched.has(item.key))), ...reply.items.map(fill)];
            return touched;
        }

        async refreshLibrary(look) {
            clearTimeout(this.again);
            const reply = await this.ask("library", { refresh: Boolean(look), since: this.since || "" });
            if (!reply) return;
            const touched = this.take(reply);
            const { picker } = this.sources;
            if (!picker.box.hidden) picker.filter(true);
            /* rows are drawn anew only where one of them is concerned: nobody is typing into a row that is being read */
            if (this.state.data.sources.some((row) => touched.has(row.key))) {
                for (const key of touched) delete this.looked[key];
                space.keepFocus(() => {
                    if (picker.box.hidden) this.sources.render();
                    this.grid.render();
                });
                this.output.ask();
            }
            if (reply.done < reply.total) this.again = setTimeout(() => this.refreshLibrary(false), 500);
        }

        /* carry out what an advice or an offer changes of the set-up */
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

        /* bring a recipe's state into the tab; `from` is the history's entry it comes from, `lacking` what differs from then */
        use(state, from = {}, lacking) {
            const rows = state.sources.map((row) => this.state.row(this.state.data.next++, row));
            const gone = rows.filter((row) => !row.key).map((row) => row.name);
            const notes = lacking || gone.map((name) => `${name} is not in the LoRA folders`);
            this.state.replace({ ...state, sources: rows, output: { ...this.state.data.output, triggers: null, based_on: from.entry || "", based_on_name: from.name || "" } });
            this.say(notes.length ? `Opened, but ${notes.join("; ")}.` : "Opened; change what you like and merge again. Ctrl+Z takes it back.", notes.length > 0);
            return !gone.length;
        }

        addSource(key) {
            const item = this.item(key);
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
            await this.output.follow(reply, (result) => this.say(`Verified: ${space.proven(result)}.`));
        }

        async afterSave() {
            await this.refreshLibrary(true);
            this.below.refresh();
            /* the cards are cached on the server; only this hidden button makes them anew */
            for (const tab of ["txt2img", "img2img"]) {
                const refresh = space.page().querySelector(`#${tab}_lora_extra_refresh_internal`);
                if (refresh) refresh.click();
            }
        }
    }

    const start = async (root) => {
        root.dataset.started = "1";
        root.replaceChildren(el("p", { class: "lm-dim" }, "Reading your LoRAs …"));
        try {
            const known = await space.bridge.ask("init", {});
            const library = await space.bridge.ask("library", { since: "" });
            space.app = new App(root, known, library);
            if (library.done < library.total) space.app.refreshLibrary(false);
        } catch (error) {
            root.replaceChildren(el("p", { class: "lm-bad" }, `The Merge tab could not start: ${error.message}`));
        }
    };

    /* a button on every LoRA card, made when the pointer or the keyboard first comes to it: nothing of the WebUI's is changed */
    const cards = (event) => {
        const card = event.target.closest && event.target.closest('[id$="_lora_cards"] .card');
        const row = card && card.querySelector(".button-row");
        if (!row || !space.app || row.querySelector(".lora-merge-add")) return;
        const add = el("div", { class: "lora-merge-add card-button", role: "button", tabindex: 0, title: "Add to Merge", "aria-label": "Add to Merge" }, "⊕");
        const go = (happened) => {
            happened.preventDefault();
            happened.stopPropagation();
            const name = card.dataset.name || "";
            const item = space.app.items.find((found) => found.name === name || found.alias === name);
            if (item) space.app.addSource(item.key);
            space.app.say(item ? `${item.name} was added.` : `${name} is not in the list yet; refresh it.`, !item);
            add.textContent = item ? "✓" : "✕";
        };
        add.addEventListener("click", go);
        add.addEventListener("keydown", (pressed) => (pressed.key === "Enter" || pressed.key === " ") && go(pressed));
        row.append(add);
    };

    const watch = () => {
        const root = space.root();
        /* the field comes into the page when the script is chosen */
        if (space.app && !space.app.pictures.busy) space.app.tellScripts();
        if (space.app) space.app.pictures.watch();
        if (root && !root.dataset.started && space.page().querySelector("#lora_merge_send")) start(root);
    };
    const begin = () => {
        watch();
        document.addEventListener("mouseover", cards);
        document.addEventListener("focusin", cards);
        /* gradio draws the page some time after it has loaded, and once more on "Reload UI" */
        setInterval(watch, 500);
    };
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
    else begin();
})();
