/* Which window of the browser this is: two windows have two set-ups, and each finds the jobs that it asked
   for again after a reload. */

const OWN = "lora-merge-window";

const LEFT = "lora-merge-left";

const BROWSER = "lora-merge-browser";

/* pages that are not served securely have no randomUUID */
const made = (kind) =>
    `${kind}-${[...crypto.getRandomValues(new Uint8Array(12))]
        .map((byte) => byte.toString(16).padStart(2, "0"))
        .join("")}`;

/**
 * The id of a window: a reload keeps it, and a copy of a window gets one of its own.
 * @param {() => Storage} kept what a reload keeps; a copy begins with what the other window has kept, which
 *     has not left
 * @returns {string}
 */
export const windowIn = (kept) => {
    try {
        const before = kept().getItem(OWN);
        const id = before && kept().getItem(LEFT) === before ? before : made("w");
        kept().setItem(OWN, id);
        kept().removeItem(LEFT);
        return id;
    } catch {
        return made("w"); // a browser that keeps nothing
    }
};

/**
 * Note that the page of a window is going.
 * @param {() => Storage} kept
 */
export const leave = (kept) => {
    try {
        kept().setItem(LEFT, kept().getItem(OWN));
    } catch {
        /* nothing is kept */
    }
};

const browserIn = (kept) => {
    try {
        const id = kept().getItem(BROWSER) || made("b");
        kept().setItem(BROWSER, id);
        return id;
    } catch {
        return made("b");
    }
};

let known = null;

/**
 * This window and its browser, as the server knows them.
 * @returns {{window: string, browser: string}}
 */
export const thisWindow = () => {
    if (known) return known;
    known = { window: windowIn(() => sessionStorage), browser: browserIn(() => localStorage) };
    window.addEventListener("pagehide", () => leave(() => sessionStorage));
    /* back from where the browser keeps pages that were left */
    window.addEventListener("pageshow", (event) => event.persisted && windowIn(() => sessionStorage));
    return known;
};
