"use strict";

/* Elements and the bridge to Python. Text goes into the page as text nodes only, so that nothing in a file's name or
   metadata can become markup. */
(() => {
    const space = (window.loraMerge = window.loraMerge || {});

    /* our own element, put into the column that Python left for it */
    space.root = () => {
        const found = space.page().querySelector("#lora_merge_root");
        const place = found ? null : space.page().querySelector("#lora_merge_page");
        if (place) {
            const root = document.createElement("div");
            root.id = "lora_merge_root";
            root.className = "lora-merge";
            place.prepend(root);
            return root;
        }
        return found;
    };

    space.page = () => (typeof gradioApp === "function" ? gradioApp() : document);

    /* what people read; direction marks in a name would turn the rest of the sentence round */
    const READ = new Set(["title", "aria-label", "placeholder", "label"]);
    space.plain = (text) => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");

    /* el("button", {class: "x", onclick: f, "aria-label": "…"}, "text", child) */
    space.el = (tag, attributes, ...children) => {
        const node = document.createElement(tag);
        for (const [name, value] of Object.entries(attributes || {})) {
            if (value === undefined || value === null || value === false) continue;
            if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
            else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") node[name] = value;
            else if (name === "style") node.style.cssText = value;
            else node.setAttribute(name, value === true ? "" : READ.has(name) ? space.plain(String(value)) : String(value));
        }
        const shown = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
        node.append(...shown.map((child) => (typeof child === "object" ? child : space.plain(String(child)))));
        return node;
    };

    space.button = (text, onclick, attributes) =>
        space.el("button", { type: "button", class: "lm-button", onclick, ...attributes }, text);

    space.select = (options, value, onchange, attributes) => {
        const node = space.el("select", { onchange: () => onchange(node.value), ...attributes });
        space.fill(node, options, value);
        return node;
    };

    /* options: [value, text] pairs, or {label, options} groups */
    space.fill = (node, options, value) => {
        const make = ([key, text]) => space.el("option", { value: key }, text);
        node.replaceChildren(
            ...options.map((option) =>
                Array.isArray(option)
                    ? make(option)
                    : space.el("optgroup", { label: option.label }, ...option.options.map(make)),
            ),
        );
        node.value = value;
    };

    /* a slider that shows how far it is from 0, or from its lower end */
    space.range = (attributes) => {
        const node = space.el("input", { type: "range", ...attributes });
        const place = (value) => `${(100 * (value - attributes.min)) / (attributes.max - attributes.min)}%`;
        node.mark = () => {
            const zero = Math.max(attributes.min, Math.min(attributes.max, 0));
            node.style.setProperty("--lm-from", place(Math.min(zero, Number(node.value))));
            node.style.setProperty("--lm-to", place(Math.max(zero, Number(node.value))));
        };
        node.addEventListener("input", node.mark);
        node.mark();
        return node;
    };

    space.megabytes = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`);
    space.percent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
    /* local time; today's without the date */
    space.when = (text) => {
        const time = new Date(text);
        if (Number.isNaN(time.getTime())) return "";
        const two = (value) => String(value).padStart(2, "0");
        const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
        return `${time.toDateString() === new Date().toDateString() ? "today" : day} ${two(time.getHours())}:${two(time.getMinutes())}`;
    };
    space.number = (value) => String(Math.round(value * 1000) / 1000);
    /* Okabe and Ito: told apart by colour-blind people too */
    space.colours = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999"];
    space.colour = (index) => space.colours[index % space.colours.length];
    /* A … Z, AA, AB, …: of the row, whatever is off or grouped; recipe_edits.letter is the same rule */
    space.letter = (index) => (index < 26 ? "" : space.letter(Math.floor(index / 26) - 1)) + String.fromCharCode(65 + (index % 26));

    /* redraw without taking the keyboard away: the control of the same name has the focus afterwards */
    space.keepFocus = (work) => {
        const root = space.root();
        const active = document.activeElement;
        const name = root && root.contains(active) ? active.getAttribute("aria-label") : null;
        const start = name ? name.split(" weight ")[0] : "";
        work();
        if (!name || active.isConnected) return;
        const same = [...root.querySelectorAll("[aria-label]")].find((node) => node.getAttribute("aria-label") === name || (node.classList.contains("lm-cell") && node.getAttribute("aria-label").startsWith(`${start} weight `)));
        if (same) same.focus({ preventScroll: true });
    };

    space.later = (work, wait) => {
        let timer = 0;
        return (...given) => {
            clearTimeout(timer);
            timer = setTimeout(() => work(...given), wait);
        };
    };

    /* What the server knows our page by: it is given to pages of its own origin alone, a new one at every start. A server
       that is just starting may have its pages before it gives tokens. */
    const askToken = async (tries = 20) => {
        const reply = await fetch(new URL("lora-merge/token", document.baseURI), { cache: "no-store", credentials: "same-origin" }).catch(() => null);
        if (reply && reply.ok) return (await reply.json()).token;
        if (reply && (reply.status === 401 || reply.status === 403)) throw new Error(`the server does not let this page in (${reply.status}); reload it`);
        if (tries <= 1) throw new Error("the server did not answer this page; reload it");
        await new Promise((resolve) => setTimeout(resolve, 500));
        return askToken(tries - 1);
    };

    /* One request at a time through the hidden gradio button; replies are told apart by their number. */
    class Bridge {
        constructor() {
            this.count = 0;
            this.queue = [];
            this.current = null;
            this.token = "";
        }

        ask(op, fields) {
            return new Promise((resolve, reject) => {
                this.queue.push({ message: { id: ++this.count, op, ...fields }, resolve, reject });
                this.next();
            });
        }

        next() {
            if (this.current || !this.queue.length) return;
            this.current = this.queue.shift();
            this.current.timer = setTimeout(() => this.fail("the server did not answer in time"), 120000);
            this.send(this.current);
        }

        async send(asked) {
            try {
                if (!this.token) this.token = await askToken();
            } catch (error) {
                if (this.current === asked) this.fail(error.message);
                return;
            }
            if (this.current !== asked) return;
            const send = space.page().querySelector("#lora_merge_send");
            if (send) send.click();
            else this.fail("the page is not complete; reload it");
        }

        /* gradio calls this for the text to send */
        take() {
            return this.current ? JSON.stringify({ ...this.current.message, token: this.token }) : "{}";
        }

        /* and this with the reply */
        tell(text) {
            let reply = null;
            try {
                reply = JSON.parse(text);
            } catch {
                return;
            }
            if (!this.current || reply.id !== this.current.message.id) return;
            if (reply.stale && !this.current.again) {
                /* the server was started anew since */
                this.current.again = true;
                this.token = "";
                this.send(this.current);
                return;
            }
            const { resolve, reject, timer } = this.current;
            clearTimeout(timer);
            this.current = null;
            if (reply.ok) resolve(reply);
            else reject(new Error(reply.error || "something went wrong"));
            this.next();
        }

        fail(sentence) {
            const waiting = this.current;
            this.current = null;
            if (waiting) {
                clearTimeout(waiting.timer);
                waiting.reject(new Error(sentence));
            }
            this.next();
        }
    }

    space.bridge = new Bridge();
})();
