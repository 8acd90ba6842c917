"use strict";

/* The only file the WebUI puts into its page. It fetches the modules once the page is drawn, so that
   nobody waits for the Merge tab who did not ask for it. Python names them in the tab's own field, with a
   version that changes with them: it is a part of their address, and so of what they import from each
   other, and no browser keeps last month's. */
(() => {
    const self = /** @type {HTMLScriptElement} */ (
        document.currentScript || document.querySelector('script[src*="/lora_merge.js"]')
    );
    const beside = self.src.replace(/\.js(\?.*)?$/, "/");
    const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

    /** Fetch all at once, instead of each when the one that wants it has come, and begin.
     * @param {string} base the address of their folder
     * @param {string[]} modules their names in it
     * @param {RequestCache} cache how the browser is to use what it has kept */
    const begin = async (base, modules, cache) => {
        const get = async (name) => {
            const reply = await fetch(base + name, { cache, credentials: "same-origin" }).catch(() => null);
            if (!reply || !reply.ok) throw new Error(`the browser could not load ${name}`);
            await reply.arrayBuffer();
        };
        await Promise.all(modules.map(get));
        await import(`${base}main.js`);
    };

    const load = async ({ version, modules }) => {
        const said = document.createElement("p");
        said.textContent = "The Merge tab is on its way …";
        page().querySelector("#lora_merge_page").prepend(said);
        try {
            const own = new URL(`lora-merge/js/${version}/`, document.baseURI).href;
            /* where our own route is missing: the WebUI's for files, asked whether what is kept still
               holds */
            await begin(own, modules, "default").catch(() => begin(beside, modules, "no-cache"));
            said.remove();
        } catch (error) {
            said.textContent = `LoRA Merge could not start: ${error.message}. Reload the page.`;
        }
    };

    const look = () => {
        const field = /** @type {HTMLInputElement} */ (
            page().querySelector("#lora_merge_message textarea, #lora_merge_message input")
        );
        if (!field || !field.value) {
            setTimeout(look, 200);
            return;
        }
        const scripts = JSON.parse(field.value);
        /* the WebUI's own start comes first; Safari knows no idle time */
        if (window.requestIdleCallback) requestIdleCallback(() => load(scripts), { timeout: 2000 });
        else setTimeout(() => load(scripts), 200);
    };
    look();
})();
