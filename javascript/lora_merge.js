"use strict";

/* The only file the WebUI puts into its page. It fetches the others once the page is drawn, so that nobody waits for the
   Merge tab who did not ask for it. Python names them, in order, in the tab's own field, each with its time of change:
   a browser must not keep last month's after an update. */
(() => {
    const self = document.currentScript || document.querySelector('script[src*="/lora_merge.js"]');
    const base = self.src.replace(/\.js(\?.*)?$/, "/");
    const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

    const load = (scripts) => {
        const said = document.createElement("p");
        said.textContent = "The Merge tab is on its way …";
        page().querySelector("#lora_merge_page").prepend(said);
        let missing = scripts.length;
        for (const [name, version] of scripts) {
            const script = document.createElement("script");
            /* scripts put in by scripts run in any order unless told otherwise */
            script.async = false;
            script.onload = () => (missing -= 1) || said.remove();
            script.onerror = () => (said.textContent = `LoRA Merge could not start: the browser could not load ${name}. Reload the page.`);
            script.src = `${base}${name}?${version}`;
            document.head.append(script);
        }
    };

    const look = () => {
        const field = page().querySelector("#lora_merge_message textarea, #lora_merge_message input");
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
