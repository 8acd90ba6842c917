/* Elements. Text goes into the page as text nodes only, so that nothing in a file's name or metadata can
   become markup. */

/**
 * Our own element, put into the column that Python left for it.
 * @returns {HTMLElement | null} null while the column is not in the page
 */
export const tabRoot = () => {
    const found = find("#lora_merge_root");
    const place = found ? null : find("#lora_merge_page");
    if (place) {
        const root = document.createElement("div");
        root.id = "lora_merge_root";
        root.className = "lora-merge";
        place.prepend(root);
        return root;
    }
    return found;
};

/**
 * The WebUI's page.
 * @returns {Document | ShadowRoot}
 */
export const hostPage = () => (typeof gradioApp === "function" ? gradioApp() : document);

/* what people read; direction marks in a name would turn the rest of the sentence round */
const READ = new Set(["title", "aria-label", "placeholder", "label"]);

/**
 * What people read; direction marks in a name would turn the rest of the sentence round.
 * @param {string} text
 */
export const plain = (text) => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");

/**
 * Make an element: el("button", {class: "x", onclick: f, "aria-label": "…"}, "text", child).
 * @param {string} tag
 * @param {Record<string, any> | null} [attributes] undefined, null and false ones are left out
 * @param {any[]} children nodes, texts, lists of them; null, undefined and false are left out
 * @returns {any}
 */
export const el = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
        if (value === undefined || value === null || value === false) continue;
        if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else if (name === "value" || name === "checked" || name === "disabled" || name === "selected")
            node[name] = value;
        else if (name === "style") node.style.cssText = value;
        else
            node.setAttribute(
                name,
                value === true ? "" : READ.has(name) ? plain(String(value)) : String(value),
            );
    }
    const shown = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
    node.append(...shown.map((child) => (typeof child === "object" ? child : plain(String(child)))));
    return node;
};

/**
 * A button.
 * @param {any} text what stands on it
 * @param {(event: any) => any} onclick
 * @param {Record<string, any>} [attributes]
 * @returns {HTMLButtonElement}
 */
export const button = (text, onclick, attributes) =>
    el("button", { type: "button", class: "lm-button", onclick, ...attributes }, text);

/**
 * A menu.
 * @param {any[]} options as `fillSelect` takes them
 * @param {string} value the one that is chosen
 * @param {(value: string) => any} onchange
 * @param {Record<string, any>} [attributes]
 * @returns {HTMLSelectElement}
 */
export const select = (options, value, onchange, attributes) => {
    const node = el("select", { onchange: () => onchange(node.value), ...attributes });
    fillSelect(node, options, value);
    return node;
};

/**
 * Give a menu its entries.
 * @param {HTMLSelectElement} node
 * @param {any[]} options [value, text] pairs, or {label, options} groups
 * @param {string} value the one that is chosen
 */
export const fillSelect = (node, options, value) => {
    /** @param {any[]} pair */
    const make = ([key, text]) => el("option", { value: key }, text);
    node.replaceChildren(
        ...options.map((option) =>
            Array.isArray(option)
                ? make(option)
                : el("optgroup", { label: option.label }, ...option.options.map(make)),
        ),
    );
    node.value = value;
};

/**
 * A slider that shows how far it is from 0, or from its lower end.
 * @param {Record<string, any>} attributes
 * @returns {HTMLInputElement & {mark: () => void}} mark: show it anew after `value` was set
 */
export const rangeInput = (attributes) => {
    const node = el("input", { type: "range", ...attributes });
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

/**
 * Redraw without taking the keyboard away: the control of the same name has the focus afterwards.
 * @param {() => any} work
 */
export const keepFocus = (work) => {
    const root = tabRoot();
    const active = document.activeElement;
    const name = root && root.contains(active) ? active.getAttribute("aria-label") : null;
    const start = name ? name.split(" weight ")[0] : "";
    work();
    if (!name || active.isConnected) return;
    const same = [...root.querySelectorAll("[aria-label]")].find(
        (node) =>
            node.getAttribute("aria-label") === name ||
            (node.classList.contains("lm-cell") &&
                node.getAttribute("aria-label").startsWith(`${start} weight `)),
    );
    if (same instanceof HTMLElement) same.focus({ preventScroll: true });
};

/**
 * The first element of the WebUI's page.
 * @param {string} selector
 * @returns {any} null where there is none
 */
export const find = (selector) => hostPage().querySelector(selector);

/**
 * All such elements of the WebUI's page.
 * @param {string} selector
 * @returns {any[]}
 */
export const findAll = (selector) => [...hostPage().querySelectorAll(selector)];

/**
 * Fill a field of the WebUI's as typing does.
 * @param {any} field
 * @param {string} text
 */
export const put = (field, text) => {
    if (!field || field.value === text) return;
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
};
