/* The bridge to Python: one request at a time through gradio. */

import { find } from "./dom.js";
import { thisWindow } from "./window.js";

/* What the server knows our page by: it is given to pages of its own origin alone, a new one at every
   start. A server that is just starting may have its pages before it gives tokens. */
const askToken = async (tries = 20) => {
    const reply = await fetch(new URL("lora-merge/token", document.baseURI), {
        cache: "no-store",
        credentials: "same-origin",
    }).catch(() => null);
    if (reply && reply.ok) return (await reply.json()).token;
    if (reply && (reply.status === 401 || reply.status === 403))
        throw new Error(`the server does not let this page in (${reply.status}); reload it`);
    if (tries <= 1) throw new Error("the server did not answer this page; reload it");
    await new Promise((resolve) => setTimeout(resolve, 500));
    return askToken(tries - 1);
};

/* One request at a time through the hidden gradio button; replies are told apart by their number. */
export class Bridge {
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
        const send = find("#lora_merge_send");
        if (send) send.click();
        else this.fail("the page is not complete; reload it");
    }

    /* gradio calls this for the text to send */
    take() {
        if (!this.current) return "{}";
        const asked_in = thisWindow().window;
        return JSON.stringify({ ...this.current.message, token: this.token, asked_in });
    }

    /* and this with the reply */
    tell(text) {
        let reply;
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
        else
            reject(
                Object.assign(new Error(reply.error || "something went wrong"), {
                    remedy: reply.remedy || null,
                    unmended: reply.unmended || "",
                }),
            );
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

export const bridge = new Bridge();
